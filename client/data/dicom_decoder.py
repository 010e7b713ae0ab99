"""The caller's side of the process that decodes DICOM files."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import DataError

_DEADLINE_SECONDS = 600.0  # against storage that hangs; a busy codec meets RLIMIT_CPU before
_MAX_FILES = 4096  # then a fresh process, should a codec leak
_MAX_MESSAGE = 1 << 20
_MAX_VALUES = 1 << 29
_PIPE_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")
_ENVIRONMENT = {
    # Threads of a numeric library would each take address space, which is limited.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Memory of glibc goes back to the machine after each file, however large.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


class DicomDecoder:
    """Owns one child process, starts it when needed and again after it has ended.

    Threads may share it: one file is decoded at a time. The child reads files with the caller's
    rights and sends numbers and fixed texts only; nothing that it sends is ever executed.
    """

    def __init__(self, *, deadline_seconds: float = _DEADLINE_SECONDS):
        self._deadline_seconds = deadline_seconds
        self._deadline = 0.0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._num_files = 0
        self._is_answered = True

    @property
    def pid(self) -> int | None:
        """Of the child, None while there is none."""
        return None if self._process is None else self._process.pid

    def tags(self, request: dict[str, Any]) -> dict[str, list[str]]:
        """Asks for elements of a header.

        Raises:
            DataError: The file cannot be read.
        """
        with self._lock:
            found = self._ask(request)["tags"]
            self._is_answered = True
            return found

    def frames(self, request: dict[str, Any]) -> npt.NDArray[np.float32]:
        """Asks for frames.

        Returns:
            (D, H, W)

        Raises:
            DataError: The file cannot be decoded.
        """
        with self._lock:
            depth, height, width = self._ask(request)["shape"]
            if min(depth, height, width) < 1 or depth * height * width > _MAX_VALUES:
                raise self._end("cannot be decoded (the decoder lost its way)")
            volume = np.empty((depth, height, width), dtype=np.float32)
            for frame in volume:
                self._message("frame")
                self._fill(memoryview(frame.view(np.uint8).data).cast("B"))
            self._message("done")
            self._is_answered = True
            return volume

    def close(self) -> None:
        """Ends the child."""
        with self._lock:
            self._end("")

    def abandon(self) -> None:
        """Forgets the child of another process, from which this one was forked."""
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
            self._process = None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._num_files += 1
        if self._num_files > _MAX_FILES or not self._is_answered:
            # An interrupted caller has left pixels of another file in the pipe.
            self._end("")
        self._deadline = time.monotonic() + self._deadline_seconds
        if self._process is not None and self._process.poll() is not None:
            self._end("")  # it ended between two files, for no fault of this one
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        content = json.dumps(request).encode("ascii")
        self._is_answered = False
        try:
            process.stdin.write(_LENGTH.pack(len(content)) + content)
        except OSError:
            raise self._end(self._epitaph()) from None
        return self._message("tags" if "tags" in request else "shape")

    def _start(self) -> None:
        # -P: a folder named "client" in the working directory must not be taken for ours.
        command = [sys.executable, "-P", "-W", "ignore", "-m", "client.data.dicom_worker"]
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
        )
        self._num_files = 1
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # fewer switches between the two for each image
            fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            self._message("ready")
        except DataError:
            raise RuntimeError(
                f"the DICOM decoder does not start; to see why: {' '.join(command)}"
            ) from None

    def _message(self, kind: str) -> dict[str, Any]:
        """Receives one message, which must be of ``kind`` or an error."""
        head = bytearray(_LENGTH.size)
        self._fill(memoryview(head))
        (length,) = _LENGTH.unpack(head)
        if length > _MAX_MESSAGE:
            raise self._end("cannot be decoded (the decoder lost its way)")
        content = bytearray(length)
        self._fill(memoryview(content))
        message = json.loads(content)
        if "error" in message:
            self._is_answered = True
            raise DataError(message["error"])
        if kind not in message:
            raise self._end("cannot be decoded (the decoder lost its way)")
        return message

    def _fill(self, view: memoryview) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        while len(view):
            left = self._deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise self._end("takes too long to read")
            count = os.readv(process.stdout.fileno(), [view])
            if not count:
                raise self._end(self._epitaph())
            view = view[count:]

    def _epitaph(self) -> str:
        """Why the child ended."""
        assert self._process is not None
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return "takes longer to decode than its size allows"
        return "cannot be decoded (the decoder crashed)"

    def _end(self, text: str) -> DataError:
        """Ends the child and returns ``text`` as an error."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.kill()
            process.stdin.close()
            process.stdout.close()
            process.wait()
        return DataError(text)


_decoders: list[DicomDecoder] = []
_forked: list[DicomDecoder] = []


def shared_decoder() -> DicomDecoder:
    """Returns the decoder of this process, which starts its child at the first file."""
    if not _decoders:
        _decoders.append(DicomDecoder())
    return _decoders[0]


def _after_fork() -> None:
    for decoder in _decoders:
        decoder.abandon()
    _forked.extend(_decoders)
    _decoders.clear()


def _at_exit() -> None:
    for decoder in _decoders:
        decoder.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)

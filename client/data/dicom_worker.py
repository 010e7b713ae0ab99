"""The decoder's own process: reads requests from stdin, answers on stdout, within limits.

Codecs in C and C++ take whatever memory and time a hostile file asks for, and may crash. So for
each request the kernel is told how much address space and processor time the file's honest size
allows (`RLIMIT_AS`, `RLIMIT_CPU`); what goes beyond fails here, or ends this process, and never
the caller's. No file can be written and no core dumped, which would hold pixels.

A message is four bytes of length and JSON; after a frame's message come its (H, W) float32 pixels.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import resource
import signal
import stat
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from client.data.dicom_header import DicomHeader
from client.data.dicom_reader import DicomReader, DicomRequest, read_tags
from common.errors import DataError

MEMORY_FACTOR = 8
"""How many times a file's honest size of new address space its reading may take; with what this
process has reserved before and not used, memory stays below 10 times."""

MEMORY_FLOOR_BYTES = 16 << 20
"""What reading may take of a file of any size, for Python's own objects."""

_SECONDS = 10
_BYTES_A_SECOND = 4 << 20  # an eighth of the slowest honest codec's pace
_LENGTH = struct.Struct(">I")


def main() -> None:
    """Answers requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # codecs print
    os.dup2(silence, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller's to handle; stdin ends after it
    _load_codecs()
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    gc.collect()
    gc.freeze()  # a collection after each file then costs microseconds
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", int)  # glibc only; costs 0.1 ms
    _send(replies, {"ready": True})
    while (request := _receive(sys.stdin.buffer)) is not None:
        with _open_limits():
            _answer(replies, request)
        gc.collect()
        give_back(0)


def honest_bytes(header: DicomHeader, file_bytes: int) -> int:
    """Returns what one frame takes at least: the file, and each sample as a float32."""
    return file_bytes + 4 * header.rows * header.columns * header.samples


def _answer(replies: BinaryIO, request: dict[str, Any]) -> None:
    try:
        path = Path(request["path"])
        file_bytes = _file_bytes(path)
        _limit(memory=file_bytes, seconds=_seconds(file_bytes))
        if "tags" in request:
            _send(replies, {"tags": read_tags(path, tuple(request["tags"]))})
            return
        reader = DicomReader.open(DicomRequest(**{**request, "path": path}))
        honest = honest_bytes(reader.header, file_bytes)
        _limit(memory=honest, seconds=_seconds(honest * len(reader.frames)))
        for number, frame in enumerate(reader.read()):
            if number == 0:  # the caller takes its memory now, when there is a frame at least
                _send(replies, {"shape": reader.shape})
            _send(replies, {"frame": True})
            replies.write(frame.data)
        _send(replies, {"done": True})
    except DataError as error:
        _send(replies, {"error": str(error)})
    except MemoryError:
        _send(replies, {"error": "takes more memory to decode than its size allows"})
    except Exception as error:
        # Whatever a codec raises on a damaged file; its text may quote the file's content.
        _send(replies, {"error": f"cannot be decoded ({type(error).__name__})"})


def _file_bytes(path: Path) -> int:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be opened ({type(error).__name__})") from None
    if not stat.S_ISREG(status.st_mode):  # a pipe would never end
        raise DataError("is not a regular file")
    return status.st_size


def _load_codecs() -> None:
    """Loads them before memory is limited; one that is missing is told of when it is needed."""
    for name in ("PIL.JpegImagePlugin", "gdcm", "jpeg_ls", "openjpeg", "rle"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _seconds(num_bytes: int) -> int:
    return _SECONDS + math.ceil(num_bytes / _BYTES_A_SECOND)


@contextlib.contextmanager
def _open_limits() -> Iterator[None]:
    """Lifts the limits of a request once it is answered."""
    try:
        yield
    finally:
        for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (hard, hard))


def _limit(*, memory: int, seconds: int) -> None:
    """Limits what this process may take from here on."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    space = pages * resource.getpagesize() + MEMORY_FLOOR_BYTES + MEMORY_FACTOR * memory
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = space if hard == resource.RLIM_INFINITY else min(space, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    until = math.ceil(time.process_time()) + seconds
    soft = until if hard == resource.RLIM_INFINITY else min(until, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    content = json.dumps(message).encode("ascii")
    replies.write(_LENGTH.pack(len(content)) + content)
    if "frame" not in message:
        replies.flush()


def _receive(requests: BinaryIO) -> dict[str, Any] | None:
    head = requests.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    return json.loads(requests.read(_LENGTH.unpack(head)[0]))


if __name__ == "__main__":
    main()

"""The child process may end at any time; its caller may not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from client.data import dicom_decoder
from client.data.dicom import read_dicom
from client.data.dicom_decoder import DicomDecoder, shared_decoder
from common.errors import DataError

WriteDicom = Callable[..., Path]


@pytest.fixture
def decoder() -> Iterator[DicomDecoder]:
    decoder = DicomDecoder()
    yield decoder
    decoder.close()


def _ask(decoder: DicomDecoder, path: Path) -> np.ndarray:
    return decoder.frames({"path": str(path)})


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGSEGV, "cannot be decoded (the decoder crashed)"),
        (signal.SIGABRT, "cannot be decoded (the decoder crashed)"),
        (signal.SIGKILL, "cannot be decoded (the decoder crashed)"),
        (signal.SIGXCPU, "takes longer to decode than its size allows"),
    ],
)
def test_a_crash_refuses_one_file_and_no_other(
    write_dicom: WriteDicom, decoder: DicomDecoder, number: signal.Signals, message: str
) -> None:
    path = write_dicom()
    expected = _ask(decoder, path)
    pid = decoder.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # it will have the request and not have answered it

    def kill_it() -> None:
        while decoder._is_answered:
            time.sleep(0.001)
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)

    crash = threading.Thread(target=kill_it)
    crash.start()
    with pytest.raises(DataError) as error:
        _ask(decoder, path)
    crash.join()
    assert str(error.value) == message
    assert np.array_equal(_ask(decoder, path), expected)
    assert decoder.pid != pid


def test_a_child_that_ended_between_two_files(
    write_dicom: WriteDicom, decoder: DicomDecoder
) -> None:
    path = write_dicom()
    expected = _ask(decoder, path)
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, decoder.pid, os.WEXITED | os.WNOWAIT)
    assert np.array_equal(_ask(decoder, path), expected)


def test_a_child_that_hangs_is_ended(write_dicom: WriteDicom) -> None:
    path = write_dicom()
    decoder = DicomDecoder(deadline_seconds=5)
    expected = _ask(decoder, path)
    pid = decoder.pid
    assert pid is not None
    decoder._deadline_seconds = 0.3
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DataError, match="takes too long to read"):
        _ask(decoder, path)
    assert not Path(f"/proc/{pid}").exists()
    decoder._deadline_seconds = 60
    assert np.array_equal(_ask(decoder, path), expected)
    decoder.close()
    assert decoder.pid is None


class _InterruptError(Exception):
    pass


def test_an_interrupted_caller_never_gets_the_pixels_of_another_file(
    write_dicom: WriteDicom, decoder: DicomDecoder
) -> None:
    def interrupt(*_: object) -> None:
        raise _InterruptError

    blank = write_dicom(PixelData=bytes(96))
    first = blank.rename(blank.with_name("first.dcm"))
    second = write_dicom()
    expected = _ask(decoder, second)
    assert expected.any()
    pid = decoder.pid
    assert pid is not None
    before = signal.signal(signal.SIGALRM, interrupt)
    os.kill(pid, signal.SIGSTOP)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    with pytest.raises(_InterruptError):
        _ask(decoder, first)
    signal.signal(signal.SIGALRM, before)
    os.kill(pid, signal.SIGCONT)
    assert np.array_equal(_ask(decoder, second), expected)


def test_a_fresh_child_after_many_files(
    write_dicom: WriteDicom, decoder: DicomDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_decoder, "_MAX_FILES", 3)
    path = write_dicom()
    pids = []
    for _ in range(7):
        _ask(decoder, path)
        pids.append(decoder.pid)
    assert [len(set(pids[start : start + 3])) for start in (0, 3)] == [1, 1]
    assert len(set(pids)) == 3


def test_threads_share_one_child(write_dicom: WriteDicom, decoder: DicomDecoder) -> None:
    paths = []
    for number in range(4):
        stored = np.full((6, 8), 1000 * number, dtype=np.uint16)
        path = write_dicom(PixelData=stored.tobytes())
        paths.append(path.rename(path.with_name(f"{number}.dcm")))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda path: _ask(decoder, path), paths * 25))
    for number, image in enumerate(images):
        assert np.allclose(image, 1000 * (number % 4) / 4095)


def test_a_forked_process_gets_a_child_of_its_own(write_dicom: WriteDicom) -> None:
    path = write_dicom()
    expected = read_dicom(path)
    pid = shared_decoder().pid
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with shared_decoder()._lock:
            is_held.set()
            may_end.wait()

    thread = threading.Thread(target=hold)  # reads a file while another thread forks
    thread.start()
    is_held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for just this
        process = os.fork()
    if process == 0:
        signal.alarm(30)  # rather than wait for a lock that nobody opens
        is_right = np.array_equal(read_dicom(path), expected) and shared_decoder().pid != pid
        shared_decoder().close()
        os._exit(0 if is_right else 1)
    may_end.set()
    thread.join()
    assert os.waitpid(process, 0)[1] == 0
    assert np.array_equal(read_dicom(path), expected)
    assert shared_decoder().pid == pid


def test_the_child_ends_with_its_caller(write_dicom: WriteDicom) -> None:
    code = (
        "import os, sys; from pathlib import Path; from client.data import dicom, dicom_decoder\n"
        "dicom.read_dicom(Path(sys.argv[1]))\n"
        "print(dicom_decoder.shared_decoder().pid, flush=True)\n"
        "os._exit(0)  # no clean-up at all"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write_dicom())], capture_output=True, text=True, check=True
    )
    child = Path("/proc", done.stdout.strip())
    gone = threading.Event()
    for _ in range(200):
        if not child.exists() or "Z" in (child / "stat").read_text().split()[2]:
            return
        gone.wait(0.05)
    pytest.fail("the child outlives its caller")


def test_a_decoder_that_does_not_start(
    write_dicom: WriteDicom, decoder: DicomDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="the DICOM decoder does not start; to see why: "):
        _ask(decoder, write_dicom())


def test_a_folder_named_client_is_not_taken_for_ours(
    write_dicom: WriteDicom, decoder: DicomDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "__init__.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert _ask(decoder, write_dicom()).shape == (1, 6, 8)

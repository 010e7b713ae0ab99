"""Files are whole or absent, however writing fails."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from common.errors import UsageError
from common.files import check_out, write_atomically, write_new


@pytest.mark.parametrize("content", [b"\x00\xffbytes", "text: \u00e4", b""])
def test_writes_and_replaces(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "result.json"
    path.write_text("old and longer than what follows it")
    write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("old", [None, b"the old file"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_failure_at_any_step_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[BaseException],
    old: bytes | None,
) -> None:
    path = tmp_path / "result.json"
    if old is not None:
        path.write_bytes(old)

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(error):
            write_atomically(path, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == (
        {} if old is None else {"result.json": old}
    )


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
        with pytest.raises(OSError, match="too large"):
            write_atomically(tmp_path / "weights", bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_a_folder_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "inside").write_text("kept")
    with pytest.raises(OSError, match="directory"):
        write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert (path / "inside").read_text() == "kept"


@pytest.mark.parametrize("folder", ["/proc", "/no/such/folder"])
def test_a_folder_that_cannot_be_written_is_an_error(folder: str) -> None:
    path = Path(folder) / "fedward-test"
    with pytest.raises(OSError, match=r"No such file|Permission|Read-only|Operation not"):
        write_atomically(path, b"new")
    assert not path.exists()


def test_a_new_file_is_never_written_over_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_new(path, b"first", mode=0o600)
    with pytest.raises(FileExistsError):
        write_new(path, b"second", mode=0o600)
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_new(link, b"x")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_out("--out", None)
    check_out("--out", tmp_path / "new.html")
    monkeypatch.chdir(tmp_path)
    check_out("--out", Path("new.html"))
    for path, words in (
        (tmp_path / "absent" / "x.html", "no such folder"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(UsageError, match=f"--out={path}: {words}"):
            check_out("--out", path)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match="may not be written"):
        check_out("--out", tmp_path / "new.html")

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from common.errors import UsageError
from simulations.hosting import ray_here


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def planted() -> None:
    """An address that somebody left for others to connect to."""
    (ray_here.folder() / "ray").mkdir()
    (ray_here.folder() / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")


def test_without_a_ray_there_is_no_address() -> None:
    assert ray_here.address_here() is None
    assert ray_here.stop() == 0


def test_a_folder_that_others_may_write_to_is_refused() -> None:
    ray_here.folder().mkdir()
    ray_here.folder().chmod(0o777)
    planted()
    with pytest.raises(UsageError, match="others may write there"):
        ray_here.address_here()


def test_a_link_to_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    ray_here.folder().symlink_to(tmp_path / "theirs")
    planted()
    with pytest.raises(UsageError, match="not a folder of this user"):
        ray_here.address_here()


def test_an_address_whose_ray_has_ended_is_none() -> None:
    ray_here.folder().mkdir(mode=0o700)
    planted()
    assert ray_here.address_here() is None

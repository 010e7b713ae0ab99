"""A site's memory between rounds: one file, whole, of one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.kept import Kept
from common.errors import LedgerError

KEPT = Kept(
    run_id="run",
    weights={"a": np.float32([1, 2])},
    control={"a": np.float32([3, 4])},
    local={"head/b": np.float32([[5]])},
)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    KEPT.write(tmp_path / "replies" / "x.safetensors")
    found = Kept.read(tmp_path / "replies" / "x.safetensors")
    assert found.run_id == "run"
    for part in ("weights", "control", "local"):
        mine, kept = getattr(KEPT, part), getattr(found, part)
        assert mine.keys() == kept.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], kept[name])


def test_only_the_last_round_is_kept_and_only_of_the_same_run(tmp_path: Path) -> None:
    KEPT.write(tmp_path / "x.safetensors")
    KEPT.write(tmp_path / "y.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["y.safetensors"]
    assert Kept.last_in(tmp_path, "run") is not None
    assert Kept.last_in(tmp_path, "another run") is None
    assert Kept.last_in(tmp_path / "absent", "run") is None


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    KEPT.write(path)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(LedgerError):
        Kept.read(path)

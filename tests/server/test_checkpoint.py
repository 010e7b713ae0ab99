from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from common.errors import UsageError
from common.messages import Weights
from server.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint

HISTORY = ({"round": 1, "seconds": 0.5, "evaluation": None, "sites": {"a": {"epsilon": None}}},)


def checkpoint(number: int, **changes: Any) -> Checkpoint:
    fields: dict[str, Any] = {
        "run_id": "r1",
        "round": number,
        "weights": {"w": np.full(300, number, np.float32)},
        "history": HISTORY,
    }
    return Checkpoint(**(fields | changes))


@settings(deadline=None, max_examples=30)
@given(
    weights=st.dictionaries(
        st.text("abc.09_", min_size=1, max_size=9),
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)),
        min_size=1,
        max_size=4,
    ),
    number=st.integers(0, 99999),
    run_id=st.text(max_size=12),
)
def test_what_is_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory, weights: Weights, number: int, run_id: str
) -> None:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    save_checkpoint(checkpoint(number, weights=weights, run_id=run_id), folder)
    found = latest_checkpoint(folder)
    assert found is not None
    assert (found.run_id, found.round, found.history) == (run_id, number, HISTORY)
    assert set(found.weights) == set(weights)
    for name, value in weights.items():
        assert found.weights[name].dtype == np.float32
        np.testing.assert_array_equal(found.weights[name], value)


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10, 11):
        save_checkpoint(checkpoint(number), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-00010.safetensors",
        "round-00011.safetensors",
    ]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.round == 11


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_a_truncated_file_is_named_in_one_line(tmp_path: Path, length: int) -> None:
    save_checkpoint(checkpoint(3), tmp_path)
    path = tmp_path / "round-00003.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UsageError, match=r"round-00003\.safetensors: not a checkpoint") as caught:
        latest_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metadata", [None, {"other": "x"}, {"fedward": "{"}, {"fedward": "{}"}, {"fedward": "[]"}]
)
def test_another_safetensors_file_is_not_a_checkpoint(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "round-00001.safetensors", metadata)
    with pytest.raises(UsageError, match="not a checkpoint"):
        latest_checkpoint(tmp_path)


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        save_checkpoint(checkpoint(number), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(checkpoint(3), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_kill_during_writing_leaves_the_last_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(checkpoint(1), tmp_path)

    class Killed(BaseException):
        pass

    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            save_checkpoint(checkpoint(2), tmp_path)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.round == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_history_holds_no_number_that_json_lacks(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(checkpoint(1, history=({"epsilon": value},)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_history_is_plain_json(tmp_path: Path) -> None:
    save_checkpoint(checkpoint(1), tmp_path)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert json.loads(json.dumps(found.history)) == list(HISTORY)

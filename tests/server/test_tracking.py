from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event

from server.tracking import Tracking


def site(status: str, epsilon: float | None) -> dict[str, Any]:
    return {"status": status, "epsilon": epsilon}


ROUNDS = [
    {
        "event": "round",
        "round": 1,
        "seconds": 2.5,
        "evaluation": {"auroc": 0.625},
        "sites": {"north": site("trained", 1.5), "south": site("refused", None)},
    },
    {
        "event": "round",
        "round": 2,
        "seconds": 1.5,
        "evaluation": None,
        "sites": {"north": site("trained", 2.25), "south": site("failed", 0.5)},
    },
]
DONE = {"event": "done", "result": {"final": {"round": 2, "test": {"auroc": 0.75}}}}


def written(folder: Path) -> set[tuple[str, float, int]]:
    """The scalars in the event files, read without the code that wrote them."""
    found: set[tuple[str, float, int]] = set()
    for path in folder.iterdir():
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found.add((value.tag, value.simple_value, event.step))
    return found


def test_every_round_is_on_disk_when_it_was_told(tmp_path: Path) -> None:
    with Tracking(tmp_path) as tracking:
        tracking.take({"event": "stage", "text": "reading"})
        tracking.take(ROUNDS[0])
        first = {
            ("round/seconds", 2.5, 1),
            ("validation/auroc", 0.625, 1),
            ("sites/trained", 1.0, 1),
            ("sites/refused", 1.0, 1),
            ("sites/failed", 0.0, 1),
            ("epsilon/north", 1.5, 1),
        }
        assert written(tmp_path) == first
        tracking.take(ROUNDS[1])
        tracking.take(DONE)
    assert written(tmp_path) - first == {
        ("round/seconds", 1.5, 2),
        ("sites/trained", 1.0, 2),
        ("sites/refused", 0.0, 2),
        ("sites/failed", 1.0, 2),
        ("epsilon/north", 2.25, 2),
        ("epsilon/south", 0.5, 2),
        ("test/auroc", 0.75, 2),
    }


def test_a_run_that_goes_on_adds_to_it(tmp_path: Path) -> None:
    for event in (ROUNDS[0], ROUNDS[1]):
        with Tracking(tmp_path) as tracking:
            tracking.take(event)
    assert {step for _, _, step in written(tmp_path)} == {1, 2}


def test_a_result_without_a_final_model_is_no_figure(tmp_path: Path) -> None:
    with Tracking(tmp_path) as tracking:
        tracking.take({"event": "done", "result": {"final": None}})
    assert written(tmp_path) == set()

"""Plain lines of a comparison, without a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from simulations.comparison.progress import CompareProgress

PLANNED = {
    "event": "planned",
    "study": "phantom",
    "sites": {"a": 4, "b": 5},
    "num_trials": 3,
    "num_workers": 2,
    "todo": {
        "x": {"title": "federated epsilon 8 seed 1", "kind": ["federated", "none", True]},
        "y": {"title": "federated epsilon inf seed 1", "kind": ["federated", "none", False]},
    },
}


def ended(name: str, **more: Any) -> dict[str, Any]:
    facts = {"problem": None, "seconds": 30.0, "attempts": 1, "auroc": 0.61}
    return {"event": "ended", "name": name, **facts, **more}


def shown(*events: dict[str, Any]) -> tuple[list[str], CompareProgress]:
    out = io.StringIO()
    with CompareProgress(Console(file=out)) as progress:
        for event in events:
            progress.show(event)
    return out.getvalue().splitlines(), progress


def test_each_trial_has_a_line() -> None:
    lines, progress = shown(
        {"event": "stage", "text": "reading the study"},
        PLANNED,
        {"event": "began", "name": "x"},
        ended("x"),
        ended("y", problem="no room", auroc=None, attempts=2),
        {"event": "done"},
    )
    assert lines == [
        "reading the study ...",
        (
            "phantom: 9 training patients at 2 hospitals; 3 trials, 1 of them have a result; "
            "2 at a time"
        ),
        "1/2  federated epsilon 8 seed 1: AUROC 0.610, 30 s  about 15 s left",
        (
            "2/2  federated epsilon inf seed 1: FAILED: no room (begun again: its process had "
            "died), 30 s"
        ),
    ]
    assert progress.is_done


def test_a_terminal_gets_a_live_display() -> None:
    out = io.StringIO()
    with CompareProgress(Console(file=out, force_terminal=True, width=100)) as progress:
        progress.show(PLANNED)
        progress.show({"event": "began", "name": "x"})
    text = out.getvalue()
    assert "federated epsilon 8 seed 1" in text
    assert "0 of 2 trials" in text
    assert not progress.is_done

"""Answers and truth that fit together, and a repr without patients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.config import TaskKind
from common.scored import Scored
from common.task import Task

BINARY = Task(kind=TaskKind.binary, names=("pneumonia",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": np.zeros((4, 2))}, r"scores \(4, 2\): must be \(4, 1\)"),
        ({"scores": np.array([[0.1], [math.nan], [0.2], [math.inf]])}, "2 of 4 are NaN"),
        ({"patients": np.arange(3)}, "vectors of 4"),
        ({"groups": {"sex": np.array(["F"])}}, "vectors of 4"),
        ({"thresholds": (0.1, 0.2)}, "thresholds: 2"),
        ({"labels": np.array([0, 1, 2, 1])}, "between 0 and 1"),
        ({"labels": np.array([0, 1, -1, 1])}, "between 0 and 1"),
        ({"labels": np.zeros((4, 1), dtype=np.int64)}, r"\(4, 1\): must be \(4,\) for a binary"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], words: str) -> None:
    facts = {"labels": np.array([0, 1, 0, 1]), "scores": np.zeros((4, 1)), "patients": np.arange(4)}
    with pytest.raises(ValueError, match=words):
        Scored(task=BINARY, **(facts | changes))


def test_nothing_of_a_patient_is_in_the_repr() -> None:
    case = Scored(
        task=BINARY,
        labels=np.array([0, 1]),
        scores=np.zeros((2, 1)),
        patients=np.arange(2),
        groups={"sex": np.array(["F", "M"])},
    )
    assert "array" not in repr(case)

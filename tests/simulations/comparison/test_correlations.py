"""Pearson's r over labels and over epsilons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from common.config import TaskKind
from common.task import Task
from simulations.comparison.cells import cells_of
from simulations.comparison.correlations import correlations
from simulations.comparison.measured import Measured

Make = Callable[..., Measured]
POSITIVE = (3, 9, 4, 20)


def with_labels(one: Measured, aurocs: Sequence[float | None]) -> Measured:
    names = tuple(f"f{n}" for n in range(len(aurocs)))
    labels = [
        {"name": name, "auroc": auroc, "num_positive": number}
        for name, auroc, number in zip(names, aurocs, POSITIVE, strict=True)
    ]
    scored = one.predictions.scored
    many = replace(
        scored,
        task=Task(kind=TaskKind.multilabel, names=names),
        labels=np.stack([scored.labels] * len(names), axis=1),
        scores=np.repeat(scored.scores, len(names), axis=1),
        thresholds=(),
    )
    result = {**one.result, "final": {"test": {"labels": labels, "fairness": {}}}}
    return replace(one, result=result, predictions=replace(one.predictions, scored=many))


def test_what_labels_lose(make_measured: Make) -> None:
    plain, private = np.array([0.9, 0.8, 0.7, 0.85]), np.array([0.6, 0.7, 0.65, 0.8])
    found = [
        with_labels(make_measured(seed=seed), [float(v) + seed / 100 for v in plain])
        for seed in (1, 3)
    ] + [with_labels(make_measured(epsilon=8.0), [float(v) for v in private])]
    cells = cells_of(found, [one.trial for one in found], seed=0)
    (told,) = correlations(cells, {cell: {} for cell in cells})["labels"]
    assert (told["arm"], told["epsilon"]) == ("federated", 8.0)
    drop = plain + 0.02 - private
    assert told["drop_and_auroc"]["r"] == pytest.approx(np.corrcoef(drop, plain)[0, 1])
    assert told["drop_and_samples"]["r"] == pytest.approx(np.corrcoef(drop, POSITIVE)[0, 1])


def test_a_label_without_auroc_is_left_out(make_measured: Make) -> None:
    found = [
        with_labels(make_measured(), [0.9, 0.8, None, 0.7]),
        with_labels(make_measured(epsilon=8.0), [0.8, 0.6, 0.7, 0.65]),
    ]
    cells = cells_of(found, [one.trial for one in found], seed=0)
    (told,) = correlations(cells, {cell: {} for cell in cells})["labels"]
    assert (told["drop_and_auroc"]["num_pairs"], told["drop_and_auroc"]["left_out"]) == (3, 1)


def test_spd_over_epsilons(make_measured: Make) -> None:
    spds = {1.0: 0.2, 8.0: 0.1, 20.0: 0.05, math.inf: 0.9}
    found = [make_measured(epsilon=epsilon) for epsilon in spds]
    cells = cells_of(found, [one.trial for one in found], seed=0)
    groups = {
        cell: {"sex": {"groups": [{"value": "F", "spd": {"value": spds[cell.epsilon]}}]}}
        for cell in cells
    }
    (told,) = correlations(cells, groups)["spd_and_epsilon"]
    assert (told["column"], told["group"], told["num_pairs"]) == ("sex", "F", 3)
    assert told["r"] == pytest.approx(np.corrcoef([1, 8, 20], [0.2, 0.1, 0.05])[0, 1])
    two = {cell: groups[cell] for cell in list(groups)[:2]}
    assert correlations({c: cells[c] for c in two}, two)["spd_and_epsilon"] == []

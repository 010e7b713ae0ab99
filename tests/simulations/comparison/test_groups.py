"""Fairness figures of several runs side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.config import TaskKind
from common.fairness import fairness
from common.scored import Scored
from common.task import Task
from simulations.comparison.groups import group_figures
from simulations.comparison.measured import Measured

Make = Callable[..., Measured]


def with_groups(one: Measured, *, num_labels: int = 1, num_few: int = 0) -> Measured:
    """The same trial on 160 images, by sex; the last ``num_few`` patients have another value."""
    rng = np.random.default_rng(one.trial.seed)
    answers = rng.integers(0, 2, (160, num_labels))
    sex = np.array(["F", "M"] * 80)
    if num_few:
        sex[-num_few:] = "X"
    names = ("malignant",) if num_labels == 1 else tuple(f"f{n}" for n in range(num_labels))
    kind = TaskKind.binary if num_labels == 1 else TaskKind.multilabel
    scored = Scored(
        task=Task(kind=kind, names=names),
        labels=answers[:, 0] if num_labels == 1 else answers,
        scores=np.clip(rng.normal(0.4 + 0.2 * answers, 0.2), 0, 1),
        patients=np.arange(160),
        groups={"sex": sex},
        thresholds=(0.5,) * num_labels,
    )
    told = {name: column.to_dict() for name, column in fairness(scored, seed=0).items()}
    result = {**one.result, "final": {"test": {"fairness": told}}}
    return replace(one, result=result)


def test_the_mean_over_runs_with_each_of_them(make_measured: Make) -> None:
    runs = [with_groups(make_measured(seed=seed)) for seed in (1, 2, 3)]
    found = group_figures(runs)["sex"]
    assert [group["value"] for group in found["groups"]] == ["F", "M"]
    for place, group in enumerate(found["groups"]):
        for name in ("auroc", "spd", "false_negative_rate", "accuracy", "ece"):
            own = [
                run.result["final"]["test"]["fairness"]["sex"]["labels"][0]["groups"][place][name]
                for run in runs
            ]
            assert group[name]["value"] == pytest.approx(np.mean([one["value"] for one in own]))
            assert [one["ci95"] for one in group[name]["runs"]] == [one["ci95"] for one in own]
            assert [one["seed"] for one in group[name]["runs"]] == [1, 2, 3]
    assert found["gaps"]["equalised_odds"]["value"] > 0
    assert found["groups"][0]["num_patients"] == 80


def test_too_few_patients_have_no_figure(make_measured: Make) -> None:
    runs = [with_groups(make_measured(seed=seed), num_few=5) for seed in (1, 2)]
    few = group_figures(runs)["sex"]["groups"][-1]
    assert few["value"] == "X"
    assert few["auroc"]["value"] is None
    assert few["auroc"]["unsaid"] == "too_few_patients"


def test_of_several_labels_the_mean(make_measured: Make) -> None:
    runs = [with_groups(make_measured(), num_labels=3)]
    group = group_figures(runs)["sex"]["groups"][0]
    mean = runs[0].result["final"]["test"]["fairness"]["sex"]["mean"]["groups"][0]
    assert group["auroc"]["value"] == mean["auroc"]["value"]


def test_a_study_without_groups(make_measured: Make) -> None:
    assert group_figures([make_measured()]) == {}

"""Finished trials, made up where only the figures matter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import configs
from common.config import Config, DataConfig, TaskKind
from common.fairness import fairness
from common.scored import Scored
from common.task import Task
from simulations.comparison.measured import Measured
from simulations.comparison.plan import Cell, Plan, Trial
from simulations.comparison.request import Kind
from simulations.comparison.summary import compared, trial_facts
from simulations.comparison.survey import Survey
from simulations.predictions import Predictions, TestSet

TINY = (
    "size=smoke",
    "data.phantom.num_train_per_site=8",
    "data.phantom.num_val=8",
    "data.phantom.num_test=24",
    "data.phantom.size=32",
    "federation.num_sites=2",
)


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Words of a comparison that takes a second for each trial."""
    return TINY


@pytest.fixture(scope="session")
def make_measured() -> Callable[..., Measured]:
    """A finished trial with an answer to each of 60 images of 60 patients.

    ``shift`` moves the scores of images with the finding: the larger, the larger the AUROC.
    """

    def make(
        arm: str = "federated",
        *,
        augment: str = "none",
        epsilon: float = math.inf,
        seed: int = 1,
        site: str | None = None,
        kind: Kind | None = None,
        shift: float = 1.0,
        cases: str = "c",
        **privacy: Any,
    ) -> Measured:
        rng = np.random.default_rng([seed, int(10 * shift)])
        labels = np.arange(60) % 2
        values = rng.normal(size=60) + shift * labels
        private = math.isfinite(epsilon)
        return Measured(
            trial=Trial(
                cell=Cell(arm=arm, augment=augment, epsilon=epsilon),
                kind=kind or Kind(arm),
                seed=seed,
                site=site,
                config=Config(),
                name=f"{arm}-{augment}-{epsilon}-{seed}-{site}",
                start=None,
            ),
            result={
                "state": "completed",
                "rounds": [{"aggregated": True}],
                "versions": {"python": "3.11"},
                "final": {"test": {"auroc": 0.5, "labels": [], "fairness": {}}},
                "privacy": {
                    "unit": "patient",
                    "delta": 1e-5,
                    "accountant": "pld",
                    "accountant_version": "1",
                    "adjacency": "zero-out",
                    "private": private,
                    "epsilon_federation": epsilon * 0.999 if private else None,
                    "noise_multiplier": 1.0 if private else None,
                    "steps_per_round": 5,
                    "sites": {"a": {"num_patients": 4}, "b": {"num_patients": 5}},
                    **privacy,
                },
            },
            predictions=Predictions(
                test_set=TestSet(cases=cases, images="i", shape=(1, 8, 8)),
                seed=seed,
                scored=Scored(
                    task=Task(kind=TaskKind.binary, names=("malignant",)),
                    labels=labels,
                    scores=1 / (1 + np.exp(-values[:, None])),
                    patients=np.arange(60),
                    thresholds=(0.5,),
                ),
            ),
        )

    return make


MADE_OF = {
    "schema": "fedward.provenance/1",
    "kind": "not_private",
    "reason": "a generator trained without privacy on these patients",
    "epsilon": None,
    "studies": ["cbis_masses"],
    "source": "elsewhere",
}


def _grouped(run: Measured) -> Measured:
    """With sex (enough patients of each) and age (ten old ones), and what a page reads."""
    ages = np.where(np.arange(60) < 50, "0-60", ">=60")
    sexes = np.where(np.arange(60) % 4 < 2, "F", "M")
    scored = replace(run.predictions.scored, groups={"sex": sexes, "age": ages})
    leaks = run.trial.cell.augment == "mix"
    synthetic = {
        "provenance": MADE_OF,
        "concerns_these_patients": True,
        "epsilon_claimed_without_them": run.result["privacy"]["epsilon_federation"],
    }
    result = run.result | {
        "study": {"task": {"kind": "binary", "names": ["malignant"]}},
        "synthetic": synthetic if leaks else None,
        "privacy": run.result["privacy"]
        | ({"private": False, "epsilon_federation": None} if leaks else {}),
        "final": {
            "test": {
                "auroc": 0.5,
                "labels": [],
                "fairness": {
                    name: column.to_dict() for name, column in fairness(scored, seed=1).items()
                },
            }
        },
    }
    return replace(run, result=result, predictions=replace(run.predictions, scored=scored))


@pytest.fixture(scope="session")
def make_comparison(make_measured: Callable[..., Measured]) -> Callable[..., dict[str, Any]]:
    """The content of ``comparison.json`` of made-up trials: two seeds, two hospitals alone.

    The arm ``mix`` leaks: its epsilon is claimed only.
    """

    def make(
        study: str = "cbis_masses",
        *,
        epsilons: tuple[float, ...] = (1.0, 8.0, math.inf),
        augments: tuple[str, ...] = ("none", "mix"),
        seeds: tuple[int, ...] = (1, 2),
    ) -> dict[str, Any]:
        kinds: list[tuple[str, str | None, float]] = [
            ("centralized", None, 1.4),
            ("federated", None, 1.2),
            ("local", "a", 0.6),
            ("local", "b", 0.4),
        ]
        found = [
            _grouped(
                make_measured(
                    arm,
                    augment=augment,
                    epsilon=epsilon,
                    seed=seed,
                    site=site,
                    shift=shift + (0.5 if math.isinf(epsilon) else 0.05 * epsilon),
                )
            )
            for arm, site, shift in kinds
            for augment in augments
            for epsilon in epsilons
            for seed in seeds
        ]
        config = Config(title="made up", data=DataConfig(name=study))
        plan = Plan(
            survey=Survey(sites={"a": 4, "b": 5}, num_images=20, delta=1e-5),
            config=config,
            trials=tuple(run.trial for run in found),
        )
        comparison = {
            **compared(found, plan, configs.to_dict(config)),
            "request": {
                "size": "smoke",
                "arms": [{"name": "local", "kind": "local", "overrides": ["finetune=lora"]}],
            },
            "trials": [
                trial_facts(run.trial, folder=Path("trials") / run.trial.name) for run in found
            ],
            "missing": [],
        }
        return json.loads(json.dumps(comparison, allow_nan=False))

    return make


@pytest.fixture
def table_study(tmp_path: Path) -> Path:
    """Forty patients with one PNG each, every second one with the finding, without a split."""
    root = tmp_path / "study"
    root.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image,patient,label"]
    for number in range(40):
        pixels = rng.integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        rows.append(f"{number}.png,P{number},{number % 2}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root

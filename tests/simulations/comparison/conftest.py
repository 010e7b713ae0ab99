"""Finished trials, made up where only the figures matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.config import Config, TaskKind
from common.scored import Scored
from common.task import Task
from simulations.comparison.measured import Measured
from simulations.comparison.plan import Cell, Trial
from simulations.comparison.request import Kind
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


@pytest.fixture
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

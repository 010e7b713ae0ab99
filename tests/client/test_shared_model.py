"""Sites that take turns with one model train to the bits of sites with models of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import classifier as classifier_module
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.kept import Kept
from client.local_model import LocalModel, Surroundings
from client.shared_model import SharedModel
from client.site import Site
from client.site_setup import SiteSetup
from common import models
from common.config import FinetuneConfig, FinetuneMode, ModelConfig, Personal, Unit
from common.messages import Recipe, Status, TrainRequest, Weights
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.seeds import SimulatedSeeds

NAMES = ("hospital-1", "hospital-2", "hospital-3")
RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=0.5,
    noise_multiplier=1.0,
    steps=2,
    max_grad_norm=1.0,
    images_per_patient=1,
    optimizer="sgd",
    learning_rate=0.05,
    physical_batch=16,
    momentum=0.0,
)


def site_model(mode: FinetuneMode) -> SiteModel:
    return SiteModel(
        config=ModelConfig(architecture="test_vit", patch_size=16),
        finetune=FinetuneConfig(mode=mode),
        image_size=32,
        num_classes=2,
        seed=5,
    )


def setup(name: str, model: LocalModel, folder: Path) -> SiteSetup:
    rng = np.random.default_rng(NAMES.index(name))
    cohort = Cohort(
        images=rng.random((12, 1, 32, 32), dtype=np.float32),
        labels=np.arange(12) % 2,
        patients=np.arange(12),
        num_patients=12,
        patient_ids=tuple(f"{name}/{number}" for number in range(12)),
    )
    return SiteSetup(
        name=name,
        cohort=cohort,
        patient_hashes=patient_hashes(cohort.patient_ids, b"k" * 32),
        ledger=folder / f"{name}.sqlite",
        replies=folder / name,
        budget=Budget(epsilon=np.inf, delta=1e-5, unit=Unit.patient),
        model=model,
        seeds=SimulatedSeeds(run_seed=1, site=name),
        cache=folder / "features",
    )


def rounds(
    folder: Path,
    own: SiteModel,
    recipe: Recipe,
    model_of: Callable[[], LocalModel],
    site_of: Callable[[SiteSetup], Any] = Site,
) -> list[bytes]:
    """Three rounds of all sites; what each released, and what it kept."""
    sites = {name: site_of(setup(name, model_of(), folder)) for name in NAMES}
    built = own.build()
    personal = Personal(recipe.personal)
    weights = models.shared_weights(built, personal)
    control: Weights = {n: np.full_like(v, 0.01) for n, v in weights.items()}
    found: list[bytes] = []
    for number in (1, 2, 3):
        request = TrainRequest(
            run_id="r",
            round=number,
            recipe=recipe,
            frozen_sha256=models.frozen_sha256(built),
            weights=weights,
            control=control if recipe.controlled else {},
        )
        replies = {name: site.train(request) for name, site in sites.items()}
        for name, reply in replies.items():
            assert reply.status is Status.trained, reply.reason
            kept = Kept.last_in(folder / name, "r")
            assert kept is not None
            found += [
                value.tobytes()
                for part in (reply.weights, kept.local, kept.control)
                for _, value in sorted((part or {}).items())
            ]
        weights = {
            n: np.mean([r.weights[n] for r in replies.values() if r.weights], axis=0)
            for n in weights
        }
    return found


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        (FinetuneMode.all, {}),
        (FinetuneMode.all, {"personal": "head"}),
        (FinetuneMode.all, {"personal": "norms"}),
        (FinetuneMode.all, {"controlled": True}),
        (FinetuneMode.head, {"engine": "opacus_hooks"}),
        (FinetuneMode.all, {"mechanism": "none", "noise_multiplier": 0.0}),
        (FinetuneMode.head, {}),
        (FinetuneMode.bitfit, {}),
    ],
)
def test_sharing_changes_no_bit(
    mode: FinetuneMode, changes: dict[str, Any], tmp_path: Path
) -> None:
    own, recipe = site_model(mode), replace(RECIPE, **changes)
    alone = rounds(tmp_path / "alone", own, recipe, lambda: own)
    shared = SharedModel(own)
    assert rounds(tmp_path / "shared", own, recipe, lambda: shared) == alone
    assert len(set(alone)) > len(NAMES)


def test_a_site_that_is_opened_anew_each_round_changes_no_bit(tmp_path: Path) -> None:
    own = site_model(FinetuneMode.all)
    recipe = replace(RECIPE, personal="head")

    class Forgetful:
        """Closed and opened again between rounds, as one of too many is."""

        def __init__(self, setup: SiteSetup) -> None:
            self._setup = setup

        def train(self, request: TrainRequest) -> Any:
            return Site(self._setup).train(request)

    alone = rounds(tmp_path / "alone", own, recipe, lambda: own)
    shared = SharedModel(own)
    assert rounds(tmp_path / "anew", own, recipe, lambda: shared, Forgetful) == alone


def test_one_model_is_built_and_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = itertools.count()
    check = classifier_module.check_engine

    def count(*arguments: Any) -> None:
        next(checked)
        check(*arguments)

    monkeypatch.setattr(classifier_module, "check_engine", count)
    shared = SharedModel(site_model(FinetuneMode.all))
    trainings = [
        shared.prepare(RECIPE, Surroundings(cohort=setup(n, shared, tmp_path).cohort))
        for n in NAMES
    ]
    assert len({id(training.model) for training in trainings}) == 1
    assert next(checked) == 1
    shared.prepare(replace(RECIPE, clipping="automatic"), Surroundings(cohort=trainings_cohort()))
    assert next(checked) == 3  # another kind of recipe is looked at anew


def trainings_cohort() -> Cohort:
    return Cohort(
        images=np.zeros((2, 1, 32, 32), np.float32),
        labels=np.arange(2),
        patients=np.arange(2),
        num_patients=2,
        patient_ids=(),
    )


def test_a_shared_training_keeps_no_patient(tmp_path: Path) -> None:
    """Only those may be shared; features of a frozen backbone are of one site's patients."""
    cohort = setup(NAMES[0], SharedModel(site_model(FinetuneMode.all)), tmp_path).cohort
    everything = SharedModel(site_model(FinetuneMode.all))
    head = SharedModel(site_model(FinetuneMode.head))
    around = Surroundings(cohort=cohort)
    assert everything.prepare(RECIPE, around) is everything.prepare(RECIPE, around)
    assert head.prepare(RECIPE, around) is not head.prepare(RECIPE, around)

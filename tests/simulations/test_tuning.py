"""Each simulated hospital's own model: charged in its ledger, shown in result.json, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import configs
from common import models
from common.messages import Weights
from common.privacy.events import PoissonGaussianSteps
from server.checkpoint import Checkpoint
from server.recipe import plan
from server.rounds import EndState, Outcome
from simulations.evaluation import HeldOut
from simulations.outcome import conclude
from simulations.run_dir import RunDir
from simulations.scene import Scene
from simulations.sites import SimulatedSites, prepare, shared_model
from simulations.tuning import tune

SMALL = (
    "data.phantom.num_train_per_site=12",
    "data.phantom.num_val=8",
    "data.phantom.num_test=24",
    "data.image_size=32",
    "model.architecture=test_vit",
    "model.patch_size=16",
    "federation.num_sites=2",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=2.0",
    "privacy.accountant=rdp",
)


class Ended:
    """A run after its last round, as if nobody had trained."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.run_dir = RunDir(path=folder / "run")
        self.run_dir.work.mkdir(parents=True)
        self.run_dir.run_id.write_text("0123456789abcdef")
        self.config = configs.load([*SMALL, *overrides])
        self.hospitals = prepare(self.config, self.run_dir)
        self.events: list[dict[str, Any]] = []
        self.scene = Scene(
            config=self.config,
            run_dir=self.run_dir,
            hospitals=self.hospitals,
            observe=self.events.append,
            federate=lambda starts, sites: [],
        )
        self.sites: SimulatedSites = self.scene.sites(self.config)
        model = shared_model(self.config, self.hospitals.num_classes).build()
        personal = self.config.strategy.personal
        self.test = HeldOut(model, self.hospitals.task, self.hospitals.test, personal)
        self.weights: Weights = models.shared_weights(model, personal)

    def outcome(self) -> Outcome:
        num_patients = sum(self.hospitals.sites.values())
        return Outcome(
            state=EndState.completed,
            recipe=plan(self.config, num_patients=num_patients),
            sites=dict.fromkeys(self.hospitals.sites),  # pyright: ignore[reportArgumentType]
            checkpoint=Checkpoint(run_id=self.scene.run_id, round=8, weights=self.weights),
        )

    def tuned(self) -> dict[str, Any] | None:
        return tune(self.scene, self.sites, self.outcome(), self.test)

    def result(self, tuned: dict[str, Any] | None) -> dict[str, Any]:
        conclude(self.hospitals, self.sites, self.outcome(), self.test, tuned)
        return json.loads(self.run_dir.result.read_text())


def test_every_hospitals_model_is_its_own_charged_and_shown(tmp_path: Path) -> None:
    ended = Ended(tmp_path, "strategy.local_steps_after=3", "training.learning_rate=0.01")
    tuned = ended.tuned()
    assert tuned is not None
    result = ended.result(tuned)
    assert result["final"]["tuned"] == json.loads(json.dumps(tuned))
    assert set(tuned) == {"hospital-1", "hospital-2"}
    shared = result["final"]["test"]
    for name, found in tuned.items():
        assert (found["status"], found["reason"]) == ("trained", None)
        assert found["test"].keys() <= shared.keys()
        assert found["test"]["num_patients"] == shared["num_patients"]
        assert 0 <= found["test"]["auroc"] <= 1
        with ended.sites.setup(name).open_ledger(ended.config.privacy.unit) as ledger:
            (event,) = ledger.events()
        recipe = ended.outcome().recipe
        assert event == PoissonGaussianSteps(
            sampling_rate=recipe.sampling_rate, noise_multiplier=2.0, steps=3
        )
        spend = result["privacy"]["sites"][name]
        assert spend["epsilon"] == spend["epsilon_this_run"] > 0
    # The shared model is the server's, whatever hospitals made of it.
    assert result["final"]["weights_sha256"] == models.weights_sha256(ended.weights)
    scores = [ended.test.scores(kept) for kept in _kept(ended)]
    assert not (scores[0] == scores[1]).all()
    # Tuned before, the same figures come again, and nobody is charged.
    spent = result["privacy"]["sites"]
    assert ended.tuned() == tuned
    assert ended.result(tuned)["privacy"]["sites"] == spent


def _kept(ended: Ended) -> list[Weights]:
    from client.kept import Kept
    from client.site import tuned_path

    return [
        Kept.read(tuned_path(ended.run_dir.replies(name), ended.scene.run_id)).local
        for name in ended.hospitals.sites
    ]


def test_a_hospital_whose_budget_is_spent_keeps_the_shared_model(tmp_path: Path) -> None:
    ended = Ended(
        tmp_path, "strategy.local_steps_after=3", "privacy.site_budgets=['hospital-2:0.1']"
    )
    tuned = ended.tuned()
    assert tuned is not None
    assert tuned["hospital-1"]["status"] == "trained"
    assert tuned["hospital-2"] == {"status": "refused", "reason": "budget_exceeded", "test": None}
    result = ended.result(tuned)
    assert result["privacy"]["sites"]["hospital-2"]["epsilon"] == 0.0


@pytest.mark.parametrize("layers", ["none", "head"])
def test_without_it_nobody_is_charged_and_nothing_is_said(tmp_path: Path, layers: str) -> None:
    ended = Ended(tmp_path, f"strategy.personal={layers}")
    assert ended.tuned() is None
    result = ended.result(None)
    assert "tuned" not in result["final"]
    assert {spend["epsilon"] for spend in result["privacy"]["sites"].values()} == {0.0}


def test_tuning_fits_layers_of_the_hospitals_own(tmp_path: Path) -> None:
    ended = Ended(tmp_path, "strategy.local_steps_after=2", "strategy.personal=head")
    tuned = ended.tuned()
    assert tuned is not None
    assert {found["status"] for found in tuned.values()} == {"trained"}
    (own,) = {frozenset(kept) for kept in _kept(ended)}
    assert own > ended.weights.keys()

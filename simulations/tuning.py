"""After the last round each simulated hospital trains the model on for itself."""

from __future__ import annotations

from typing import Any

from client.site import Site
from common import models
from common.config import Config
from common.errors import LedgerError, Refusal
from common.messages import Reason, Status, TrainRequest
from common.seeds import derive_seed
from server.recipe import after
from server.rounds import Outcome
from simulations.evaluation import HeldOut
from simulations.scene import Scene
from simulations.sites import Hospitals, SimulatedSites, shared_model


def tune(
    scene: Scene, sites: SimulatedSites, outcome: Outcome, test: HeldOut
) -> dict[str, Any] | None:
    """Each hospital's own model on the test images, as in ``final.tuned``; ``None`` if not asked.

    The tuned weights stay where each hospital keeps its own things; a simulation looks at them
    where they lie. Done once: a run that goes on finds what was tuned before.
    """
    config = sites.config
    steps = config.strategy.local_steps_after
    if not steps:
        return None
    request = TrainRequest(
        run_id=outcome.checkpoint.run_id,
        round=outcome.checkpoint.round,
        recipe=after(outcome.recipe, steps),
        frozen_sha256=_frozen_sha256(config, scene.hospitals),
        weights=outcome.checkpoint.weights,
    )
    found: dict[str, Any] = {}
    for number, name in enumerate(outcome.sites):
        scene.part("training the final model on at each hospital", number, len(outcome.sites))
        found[name] = _tuned(Site(sites.setup(name)), request, test, config)
    return found


def _tuned(site: Site, request: TrainRequest, test: HeldOut, config: Config) -> dict[str, Any]:
    """Figures of one hospital's model, or why it has none."""
    facts: dict[str, Any] = {"status": Status.trained.value, "reason": None, "test": None}
    try:
        weights = site.tune(request)
    except Refusal as refusal:
        return {**facts, "status": Status.refused.value, "reason": refusal.code}
    except LedgerError:
        reason = Reason.ledger_unavailable.value
        return {**facts, "status": Status.refused.value, "reason": reason}
    figures = test.evaluate(weights, seed=derive_seed(config.seed, "bootstrap"))
    return {**facts, "test": figures.to_dict()}


def _frozen_sha256(config: Config, hospitals: Hospitals) -> str:
    model = shared_model(config, hospitals.num_classes, hospitals.depth).build()
    return models.frozen_sha256(model)

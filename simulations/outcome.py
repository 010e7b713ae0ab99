"""From a finished (or failed) run to its files: weights, predictions, result.json, report."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from safetensors.numpy import save

import configs
from client.kept import Kept
from common.config import Config, Personal, Trust, Unit
from common.evaluation import evaluate
from common.fairness import fairness
from common.files import write_atomically
from common.messages import Recipe
from common.models import weights_sha256
from common.privacy import accountants
from common.privacy.chain import Entry
from common.privacy.events import Event, alone, patient_level, rests_on_others
from common.provenance import METADATA_KEY, dumps
from common.scored import Scored
from common.seeds import derive_seed
from server import site_dp
from server.checkpoint import Checkpoint, latest_checkpoint
from server.end_state import EndState
from server.recipe import plan
from server.rounds import Outcome
from server.schedule import Schedule
from simulations.evaluation import HeldOut
from simulations.predictions import Predictions, TestSet
from simulations.report import model_card, run_page
from simulations.run_dir import RunDir
from simulations.run_provenance import provenance_of
from simulations.sites import Hospitals, SimulatedSites

SCHEMA = "fedward.result/1"
_VERSIONED = ("fedward", "torch", "timm", "flwr", "ray", "opacus", "dp-accounting", "numpy")
_FPRS = (0.01, 0.001)


def conclude(
    hospitals: Hospitals,
    sites: SimulatedSites,
    outcome: Outcome,
    test: HeldOut,
    tuned: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Test the final model and write everything; returns the content of ``result.json``.

    ``tuned`` is what is known of the models that hospitals trained on for themselves.
    """
    config, run_dir = sites.config, sites.run_dir
    weights = outcome.checkpoint.weights
    digest = weights_sha256(weights)
    scored = test.scored(weights)
    seed = derive_seed(config.seed, "bootstrap")
    result = run_facts(config, hospitals, outcome.state, outcome.checkpoint)
    result["final"] = {
        "round": outcome.checkpoint.round,
        "weights_sha256": digest,
        "test": {
            **evaluate(scored, seed=seed).to_dict(),
            "fairness": {
                name: column.to_dict() for name, column in fairness(scored, seed=seed).items()
            },
        },
        "predictions": _predictions(sites, scored, test),
    }
    if config.strategy.personal is not Personal.none:
        result["final"]["personal"] = _personal(sites, outcome, test)
    if tuned is not None:
        result["final"]["tuned"] = tuned
    result["privacy"] = privacy_facts(hospitals, sites, outcome.recipe)
    result["privacy"]["site_level"] = _site_level(config, outcome.checkpoint)
    result["synthetic"] = _synthetic(hospitals, config, result["privacy"])
    result["initial_weights"] = _initial_weights(hospitals, config)
    made = provenance_of(sites, outcome.recipe, hospitals.sources, what="a model")
    result["provenance"] = made.to_dict()
    about = {key: result[key] for key in ("schema", "created", "title", "study", "privacy")}
    metadata = {"fedward": json.dumps(about), METADATA_KEY: dumps(made)}
    write_atomically(run_dir.weights, save(weights, metadata=metadata))
    _write(result, run_dir)
    return result


def _predictions(sites: SimulatedSites, scored: Scored, test: HeldOut) -> dict[str, Any]:
    """Write the answer to every test image; returns where, and which images they were."""
    config, path = sites.config, sites.run_dir.predictions
    answers = Predictions(test_set=TestSet.of(test.cohort), seed=config.seed, scored=scored)
    digest = answers.write(path, public=config.data.public is not None)
    return {"file": path.name, "sha256": digest, "test_set": answers.test_set.to_dict()}


def fail(hospitals: Hospitals, sites: SimulatedSites, why: str) -> None:
    """Write what is known of a run that failed: rounds, spend and why, no final figures."""
    config, run_dir = sites.config, sites.run_dir
    checkpoint = latest_checkpoint(run_dir.checkpoints) or Checkpoint(
        run_id=run_dir.run_id.read_text().strip(), round=0, weights={}
    )
    result = run_facts(config, hospitals, EndState.failed, checkpoint)
    result["ended"] = why
    recipe = checkpoint.recipe or plan(config, num_patients=sum(hospitals.sites.values()))
    result["privacy"] = privacy_facts(hospitals, sites, recipe)
    result["privacy"]["site_level"] = _site_level(config, checkpoint)
    _write(result, run_dir)


def _write(result: dict[str, Any], run_dir: RunDir) -> None:
    run_page.write(result, run_dir.report)
    if result["final"] is not None:
        model_card.write(result, run_dir.model_card)
    write_atomically(run_dir.result, json.dumps(result, indent=2, allow_nan=False) + "\n")


def run_facts(
    config: Config, hospitals: Hospitals, state: EndState, checkpoint: Checkpoint
) -> dict[str, Any]:
    """What ``result.json`` says of any run."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "title": config.title,
        "state": state.value,
        "study": {
            "name": hospitals.study,
            "public": config.data.public,
            "num_train_patients": sum(hospitals.sites.values()),
            "num_train_images": hospitals.num_train_images,
            "task": {"kind": hospitals.task.kind.value, "names": list(hospitals.task.names)},
        },
        "config": configs.to_dict(config),
        "versions": {
            "python": platform.python_version(),
            **{name.replace("-", "_"): version(name) for name in _VERSIONED},
        },
        "rounds": list(checkpoint.history),
        "final": None,
    }


def privacy_facts(hospitals: Hospitals, sites: SimulatedSites, recipe: Recipe) -> dict[str, Any]:
    """Spend of every site over all rounds, read back from its ledger."""
    config = sites.config
    spends = {
        name: _site_spend(sites, name, num_patients, recipe)
        for name, num_patients in hospitals.sites.items()
    }
    spent = [spend["epsilon"] for spend in spends.values()]
    private = recipe.private and all(epsilon is not None for epsilon in spent)
    return {
        "private": private,
        "mechanism": recipe.mechanism,
        "unit": recipe.unit,
        "adjacency": "zero-out",
        "sampler": "poisson",
        "accountant": recipe.accountant,
        "accountant_version": f"dp_accounting {version('dp-accounting')}",
        "delta": recipe.delta,
        "epsilon_target": config.privacy.epsilon_target,
        "noise_multiplier": recipe.noise_multiplier if recipe.private else None,
        "max_grad_norm": recipe.max_grad_norm if recipe.private else None,
        "sampling_rate": recipe.sampling_rate,
        "steps_per_round": recipe.steps,
        "rounds_planned": config.federation.rounds,
        "sites_per_round": config.federation.sites_per_round,
        "most_rounds_of_a_site": Schedule.of(config).most_rounds,
        "trust": config.federation.trust.value,
        "sites": spends,
        "epsilon_federation": max(spent) if private else None,
        "secure_aggregation": _secure_aggregation(config),
    }


def _secure_aggregation(config: Config) -> dict[str, Any] | None:
    """What the trust in secure sums rests on."""
    federation = config.federation
    if federation.trust is Trust.local:
        return None
    parties = federation.parties
    return {
        "num_sites": parties.num_sites,
        "max_dropouts": parties.max_dropouts,
        "max_colluders": parties.max_colluders,
        "threshold": parties.threshold,
        "num_shares": parties.num_shares,
    }


def _site_level(config: Config, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What protects a whole hospital, as whoever gets the models sees it; the server sees more."""
    settings = config.strategy.site_dp
    rounds = sum(record["aggregated"] for record in checkpoint.history)
    cost = site_dp.event(settings, rounds)
    if settings.noise_multiplier is None:
        return None
    accountant = accountants.build(config.privacy.accountant.value)
    epsilon = 0.0 if cost is None else accountant.epsilon([cost], settings.delta)
    return {
        "epsilon": _finite(epsilon),
        "delta": settings.delta,
        "accountant": config.privacy.accountant.value,
        "unit": "site",
        "adjacency": "zero-out",
        "noise_multiplier": settings.noise_multiplier,
        "clip_norm": settings.clip_norm,
        "rounds": rounds,
    }


def _personal(sites: SimulatedSites, outcome: Outcome, test: HeldOut) -> dict[str, Any]:
    """Figures of each hospital's model: the shared one with the hospital's own layers.

    These never leave a hospital; a simulation looks at them where they lie.
    """
    found: dict[str, Any] = {}
    for name in outcome.sites:
        kept = Kept.last_in(sites.setup(name).replies, outcome.checkpoint.run_id)
        if kept is not None:
            weights = {**outcome.checkpoint.weights, **kept.local}
            seed = derive_seed(sites.config.seed, "bootstrap")
            found[name] = test.evaluate(weights, seed=seed).to_dict()
    return found


def _synthetic(
    hospitals: Hospitals, config: Config, privacy: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Which synthetic images were used, what they cost, and what training alone would claim."""
    pool = hospitals.pool
    if pool is None:
        return None
    made = pool.provenance
    claims = [spend["epsilon_this_run"] for spend in privacy["sites"].values()]
    return {
        "use": config.augment.mode.value,
        "num_images": pool.cohort.num_patients,
        "counted_as_patients": config.augment.counted_as_patients,
        "concerns_these_patients": made.concerns(config.data.name),
        "epsilon_claimed_without_them": None if None in claims else max(claims, default=None),
        "provenance": made.to_dict(),
    }


def _initial_weights(hospitals: Hospitals, config: Config) -> list[dict[str, Any]]:
    """Weights that bring a provenance; whose patients are behind them."""
    return [
        {
            "concerns_these_patients": source.provenance.concerns(config.data.name),
            "provenance": source.provenance.to_dict(),
        }
        for source in hospitals.initial
    ]


def _site_spend(
    sites: SimulatedSites, name: str, num_patients: int, recipe: Recipe
) -> dict[str, Any]:
    setup = sites.setup(name)
    with setup.open_ledger(Unit(recipe.unit)) as ledger:
        events = ledger.events()
        own = _of_run(ledger.entries(), sites.run_dir.run_id.read_text().strip())
    accountant = accountants.build(recipe.accountant)
    epsilon = accountant.epsilon(events, recipe.delta)
    spend: dict[str, Any] = {
        "num_patients": num_patients,
        "epsilon": _finite(epsilon),
        "epsilon_this_run": _finite(accountant.epsilon(own, recipe.delta)),
        "epsilon_budget": _finite(setup.budget.epsilon),
    }
    if rests_on_others(events):
        without_trust = [alone(event) for event in events]
        spend["epsilon_alone"] = _finite(accountant.epsilon(without_trust, recipe.delta))
    if (most := setup.counted(Unit(recipe.unit)).images_per_patient) > 1:
        by_patient = [patient_level(event, most) for event in events]
        spend["epsilon_patient"] = _finite(accountant.epsilon(by_patient, recipe.delta))
    if spend["epsilon"] is not None:
        rdp = accountants.build("rdp").epsilon(events, recipe.delta)
        spend["epsilon_rdp"] = _finite(rdp)
        spend["tpr_bound_at_fpr"] = _tpr_bounds(events)
    return spend


def _of_run(entries: Sequence[Entry], run_id: str) -> list[Event]:
    """What was charged for requests of this run, other runs and cohorts left out."""
    mine = [e for e in entries if not e.origin and e.request_id.startswith(f"{run_id}/")]
    return [event for entry in mine for event in entry.events]


def _tpr_bounds(events: Any) -> Mapping[str, float]:
    pld = accountants.certificate()
    return {str(fpr): pld.true_positive_rate_bound(events, fpr) for fpr in _FPRS}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

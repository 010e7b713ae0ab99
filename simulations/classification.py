"""The job of ``fedward simulate``: hospitals train a classifier together."""

from __future__ import annotations

from client.dp import engines
from client.dp.check import check_engine, made_up_batch
from common import models
from common.config import AugmentMode, Config, EngineName, Trust
from common.errors import RunFailed, UsageError
from common.messages import SiteDescription
from common.secure_aggregation.roster import Roster
from common.seeds import SimulatedSeeds
from server.checkpoint import Checkpoint
from server.end_state import EndState
from server.recipe import plan
from server.rounds import Outcome, Start
from simulations.beginning import begun
from simulations.evaluation import HeldOut
from simulations.outcome import conclude, fail
from simulations.pool import plan_facts
from simulations.scene import Scene
from simulations.secure_sites import roster_of
from simulations.sites import Hospitals, device_for, features_cache, shared_model
from simulations.tuning import tune


def classify(scene: Scene) -> None:
    """Train, test, write the result.

    Raises:
        UsageError: if something of the configuration cannot be done.
        RunFailed: if the federation could not finish.
    """
    hospitals, run_dir = scene.hospitals, scene.run_dir
    config = begun(scene)
    scene.stage("building the model")
    if config.privacy.private:
        _check_engine(config, hospitals)
    model = shared_model(config, hospitals.num_classes, hospitals.depth).build()
    personal = config.strategy.personal
    cache = features_cache(config)
    device = device_for(config.simulation)
    validation = HeldOut(model, hospitals.task, hospitals.val, personal, cache=cache, device=device)
    test = HeldOut(
        *(model, hospitals.task, hospitals.test, personal),
        cache=cache,
        thresholds_from=validation,
        device=device,
    )
    test.check("test")
    sites = scene.sites(config)
    start = Start(
        config=config,
        sites=scene.approved(),
        checkpoint=scene.checkpoint()
        or Checkpoint(run_id=scene.run_id, round=0, weights=models.shared_weights(model, personal)),
        frozen_sha256=models.frozen_sha256(model),
        checkpoints=run_dir.checkpoints,
        evaluate=lambda weights: {"split": "val", "auroc": validation.auroc(weights)},
        observe=scene.observe,
        synthetic=plan_facts(hospitals.pool, hospitals.sources, config),
        seeds=SimulatedSeeds(run_seed=config.seed, site="server"),
        identities=_identities(config, scene.approved()),
    )
    try:
        if config.augment.mode is AugmentMode.pretrain:
            outcome = _as_it_is(start, hospitals)
        else:
            (outcome,) = scene.federate([start], sites)
    except RunFailed as error:
        fail(hospitals, sites, str(error))
        raise
    tuned = tune(scene, sites, outcome, test)
    scene.stage("testing the final model")
    result = conclude(hospitals, sites, outcome, test, tuned)
    scene.observe({"event": "done", "result": result})


def _identities(config: Config, sites: tuple[str, ...]) -> Roster | None:
    if config.federation.trust is Trust.local:
        return None
    return roster_of(config.seed, sites)


def _as_it_is(start: Start, hospitals: Hospitals) -> Outcome:
    """The model as it begins; no hospital is asked."""
    num_patients = sum(hospitals.sites.values())
    return Outcome(
        state=EndState.completed,
        recipe=plan(start.config, num_patients=num_patients, synthetic=start.synthetic),
        sites={
            name: SiteDescription(site=name, num_patients=number)
            for name, number in hospitals.sites.items()
        },
        checkpoint=start.checkpoint,
    )


def _check_engine(config: Config, hospitals: Hospitals) -> None:
    """Refuse a model that private training does not cover before any site is asked."""
    name = config.privacy.engine
    model = shared_model(config, hospitals.num_classes, hospitals.depth).build()
    batch = made_up_batch(
        hospitals.val.images.shape[1:],
        num_outputs=hospitals.num_classes,
        multilabel=hospitals.val.labels.ndim > 1,
        one_image_each=name is EngineName.opacus_ghost,
    )
    try:
        check_engine(model, engines.build(name, model), batch)
    except UsageError as error:
        raise UsageError(
            f"model={config.model.name} finetune={config.finetune.mode.value}: {error}"
        ) from error

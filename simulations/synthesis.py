"""The job of ``fedward synthesize``: hospitals train a generator, and images are drawn from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.local_model import ModelMismatch, Surroundings
from client.synthesis.generator_file import write_generator
from client.synthesis.image_set import write_image_set
from client.synthesis.site_generator import SiteGenerator
from common import models
from common.config import GeneratorKind, GeneratorSharing, StrategyName, TaskKind
from common.errors import RunFailed, UsageError
from common.generators.conditional_gan import ConditionalGan
from common.generators.moments import MomentGenerator
from common.generators.sampling import sample
from common.seeds import derive_seed
from server.checkpoint import Checkpoint, latest_checkpoint
from server.recipe import plan
from server.rounds import Start
from simulations.outcome import fail
from simulations.run_provenance import provenance_of
from simulations.scene import Scene
from simulations.sites import shared_generator
from simulations.synthesis_outcome import finish

_AT_ONCE = 256


def synthesize(scene: Scene) -> None:
    """Train, draw, write the images with what they cost.

    Raises:
        UsageError: if something of the configuration cannot be done.
        RunFailed: if the federation could not finish.
    """
    config, run_dir = scene.config, scene.run_dir
    words = _words(scene)
    shared = shared_generator(config, scene.hospitals.num_classes)
    _check_engine(scene, shared)
    generator = shared.build()
    sites = scene.sites(config)
    try:
        outcomes = scene.federate(_starts(scene, generator), sites)
    except RunFailed as error:
        fail(scene.hospitals, sites, str(error))
        raise
    scene.stage(f"drawing {config.gan.num_images} images")
    generators = {
        name: o.checkpoint.weights for name, o in zip(_names(scene), outcomes, strict=True)
    }
    sources = scene.hospitals.sources
    made = provenance_of(sites, outcomes[0].recipe, sources, what="a generator")
    for name, weights in generators.items():
        write_generator(run_dir.generator(name), weights, shared.blueprint, words, made)
    shutil.rmtree(run_dir.images, ignore_errors=True)
    batches = _draw(scene, generators, generator)
    write_image_set(run_dir.images, batches, words=words, provenance=made)
    result = finish(scene, sites, outcomes, made)
    scene.observe({"event": "done", "result": result})


def _words(scene: Scene) -> tuple[str, ...]:
    """What tables call the classes."""
    task = scene.hospitals.task
    if scene.hospitals.depth is not None or task.kind is TaskKind.multilabel:
        raise UsageError(
            "a generator needs a study of images with one class each, not of volumes or of "
            "several findings"
        )
    return ("0", "1") if task.kind is TaskKind.binary else task.names


def _check_engine(scene: Scene, shared: SiteGenerator) -> None:
    """Refuse what private training does not cover before any site is asked."""
    config = scene.config
    single = config.federation.rounds == 1 and config.federation.steps_per_round == 1
    mean = config.strategy.name is StrategyName.fedavg
    if config.gan.kind is GeneratorKind.moments and not (single and mean):
        raise UsageError(
            "gan.kind=moments: is released once, and averaged; set federation.rounds=1 "
            "federation.steps_per_round=1 (gan=moments does) and strategy=fedavg"
        )
    recipe = plan(config, num_patients=sum(scene.hospitals.sites.values()))
    try:
        shared.prepare(recipe, Surroundings(cohort=scene.hospitals.val))
    except ModelMismatch as error:
        raise UsageError(f"gan.kind={config.gan.kind.value}: {error}") from error


def _names(scene: Scene) -> tuple[str, ...]:
    """Of the generators: of all hospitals together, or of each."""
    together = scene.config.gan.sharing is GeneratorSharing.average
    return ("",) if together else scene.approved()


def _starts(scene: Scene, generator: nn.Module) -> list[Start]:
    return [_start(scene, generator, name) for name in _names(scene)]


def _start(scene: Scene, generator: nn.Module, site: str) -> Start:
    """Of the generator of all hospitals, or of the hospital ``site``."""
    folder = scene.run_dir.checkpoints / site
    config = scene.config
    if site:
        config = replace(config, federation=replace(config.federation, min_sites=1))
    begin = Checkpoint(
        run_id=f"{scene.run_id}/{site}" if site else scene.run_id,
        round=0,
        weights=models.trainable_weights(generator),
    )
    return Start(
        config=config,
        sites=(site,) if site else scene.approved(),
        checkpoint=latest_checkpoint(folder) or begin,
        frozen_sha256=models.frozen_sha256(generator),
        checkpoints=folder,
        evaluate=_no_figures,
        observe=scene.observe,
    )


def _no_figures(weights: models.Weights) -> dict[str, Any]:
    del weights
    return {"split": "val", "auroc": None}


def _draw(
    scene: Scene,
    generators: Mapping[str, models.Weights],
    generator: ConditionalGan | MomentGenerator,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Classes in turn and generators in turn: counts of classes would be patients' data."""
    random = torch.Generator().manual_seed(derive_seed(scene.config.seed, "images"))
    total, names, done = scene.config.gan.num_images, sorted(generators), 0
    for position, name in enumerate(names):
        models.load_trainable_weights(generator, generators[name])
        count = total // len(names) + (position < total % len(names))
        labels = torch.arange(count) % generator.num_classes
        for part in labels.split(_AT_ONCE):
            yield sample(generator, part, random).numpy(), part.numpy()
            done += len(part)
            scene.part("images", done, total)

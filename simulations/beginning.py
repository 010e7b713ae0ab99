"""What the model begins with before any hospital is asked: a centre, synthetic images."""

from __future__ import annotations

from dataclasses import replace

from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from client.synthesis.pretraining import Pretraining, pretrain
from common import models, provenance
from common.centering import CenteredHead
from common.config import AugmentMode, Config, FinetuneMode
from common.errors import UsageError
from common.files import write_atomically
from common.provenance import Kind, Provenance, of_this_program
from common.seeds import derive_seed
from simulations.pool import charge_sites
from simulations.run_dir import RunDir
from simulations.scene import Scene
from simulations.sites import device_for, features_cache

_THEN = {
    AugmentMode.pretrain_then_dp_head: FinetuneMode.head,
    AugmentMode.pretrain_then_dp_all: FinetuneMode.all,
}


def begun(scene: Scene) -> Config:
    """The configuration of a run that begins with what came before its first round.

    Images and weights that were made from patients are charged first. A run that goes on finds
    the weights, or the epoch where it stopped.

    Raises:
        UsageError: if a hospital refuses what it would be charged, or the model cannot be built.
    """
    config = scene.config
    if scene.hospitals.sources:
        charge_sites(scene.hospitals.sources, scene.sites(config))
    augment, finetune = config.augment, config.finetune
    if not (augment.pretrains or finetune.center):
        return config
    if not scene.run_dir.start.is_file():
        _begin(scene)
    return as_begun(config, scene.run_dir)


def as_begun(config: Config, run_dir: RunDir) -> Config:
    """``config`` with what `begun` left in ``run_dir``."""
    augment, finetune = config.augment, config.finetune
    if not (augment.pretrains or finetune.center):
        return config
    mode = _THEN.get(augment.mode, finetune.mode)
    return replace(
        config,
        model=replace(config.model, start=run_dir.start),
        finetune=replace(finetune, mode=mode),
    )


def _begin(scene: Scene) -> None:
    """Build the model, pretrain it if asked, and keep what its weights' file does not say."""
    config, run_dir = scene.config, scene.run_dir
    model = _model(scene)
    kept = _names_in_start(config) | {
        f"{name}.center" for name, m in model.named_modules() if isinstance(m, CenteredHead)
    }
    if config.augment.pretrains:
        _pretrain(scene, model)
        kept |= {name for name, p in model.named_parameters() if p.requires_grad}
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name in kept
    }
    metadata = {provenance.METADATA_KEY: provenance.dumps(_provenance(scene))}
    write_atomically(run_dir.start, save(tensors, metadata=metadata))
    run_dir.pretraining.unlink(missing_ok=True)


def _pretrain(scene: Scene, model: nn.Module) -> None:
    config, pool = scene.config, scene.hospitals.pool
    assert pool is not None
    scene.stage(f"training on {pool.cohort.num_patients} synthetic images")
    augment = config.augment
    how = Pretraining(
        epochs=augment.epochs,
        batch_size=augment.batch_size,
        learning_rate=augment.learning_rate,
        seed=derive_seed(config.seed, "pretraining"),
        augmentation=config.training.augmentation,
        precision=config.training.precision,
    )
    pretrain(
        model.to(device_for(config.simulation)),
        pool.cohort,
        how,
        state=scene.run_dir.pretraining,
        cache=features_cache(config),
        observe=lambda epoch: scene.observe(
            {"event": "pretraining", "epoch": epoch, "epochs": augment.epochs}
        ),
    )


def _model(scene: Scene) -> nn.Module:
    config = scene.config
    layers = config.augment.layers if config.augment.pretrains else config.finetune.mode
    if config.augment.pretrains and layers is FinetuneMode.lora:
        raise UsageError("augment.layers=lora: pretraining trains weights of the model itself")
    return models.build(
        config.model,
        replace(config.finetune, mode=layers),
        image_size=config.data.image_size,
        num_classes=scene.hospitals.num_classes,
        seed=derive_seed(config.seed, "model"),
        depth=scene.hospitals.depth,
    )


def _names_in_start(config: Config) -> set[str]:
    if config.model.start is None:
        return set()
    with safe_open(str(config.model.start), framework="pt") as file:
        return set(file.keys())


def _provenance(scene: Scene) -> Provenance:
    """Of everything that the weights were made with."""
    sources = [source.provenance for source in scene.hospitals.sources]
    if not sources:
        reason = scene.config.model.weights_public or "images without content"
        sources = [Provenance(kind=Kind.public, reason=reason)]
    return replace(
        provenance.combined(sources),
        seed=scene.config.seed,
        source=f"run {scene.run_id} ({scene.config.title})",
        code=of_this_program(),
        digest="",
    )

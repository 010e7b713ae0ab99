"""The model is trained on synthetic images before any hospital is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from safetensors.torch import save
from torch import nn

from client.synthesis.image_set import ImageSet
from client.synthesis.pretraining import Pretraining, pretrain
from common import models, provenance
from common.config import AugmentMode, Config, FinetuneConfig, FinetuneMode
from common.errors import UsageError
from common.files import write_atomically
from common.seeds import derive_seed
from simulations.run_dir import RunDir

_THEN = {
    AugmentMode.pretrain_then_dp_head: FinetuneMode.head,
    AugmentMode.pretrain_then_dp_all: FinetuneMode.all,
}


def pretrained(
    config: Config,
    pool: ImageSet,
    num_classes: int,
    run_dir: RunDir,
    observe: Callable[[dict[str, Any]], None],
) -> Config:
    """Train the model on ``pool``; the configuration of a run that begins with its weights.

    A run that goes on finds the weights, or the epoch where it stopped.
    """
    augment = config.augment
    if not run_dir.pretrained.is_file():
        model = _model(config, num_classes)
        how = Pretraining(
            epochs=augment.epochs,
            batch_size=augment.batch_size,
            learning_rate=augment.learning_rate,
            seed=derive_seed(config.seed, "pretraining"),
            augmentation=config.training.augmentation,
            precision=config.training.precision,
        )
        pretrain(
            model,
            pool.cohort,
            how,
            state=run_dir.pretraining,
            observe=lambda epoch: observe(
                {"event": "pretraining", "epoch": epoch, "epochs": augment.epochs}
            ),
        )
        text = provenance.dumps(pool.provenance)
        content = save(_contiguous(model), metadata={provenance.METADATA_KEY: text})
        write_atomically(run_dir.pretrained, content)
        run_dir.pretraining.unlink(missing_ok=True)
    begun = replace(
        config.model,
        weights=run_dir.pretrained,
        weights_public="trained in this run on synthetic images",
    )
    mode = _THEN.get(augment.mode, config.finetune.mode)
    return replace(config, model=begun, finetune=replace(config.finetune, mode=mode))


def _model(config: Config, num_classes: int) -> nn.Module:
    if config.augment.layers is FinetuneMode.lora:
        raise UsageError("augment.layers=lora: pretraining trains weights of the model itself")
    return models.build(
        config.model,
        FinetuneConfig(mode=config.augment.layers, blocks=config.finetune.blocks),
        image_size=config.data.image_size,
        num_classes=num_classes,
        seed=derive_seed(config.seed, "model"),
    )


def _contiguous(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}

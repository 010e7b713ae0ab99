"""One hospital of ``fedward bench gpu``, in a process of its own: it trains rounds when told to.

Run as ``python -m simulations.bench.gpu_client JSON``, with the fields of `Rounds`; each line of
standard input is a round, answered with one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import dataclass

import numpy as np
import torch

from client import devices
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.dp.training import RoundSeeds
from client.local_model import Surroundings
from common.config import DeviceName, FinetuneConfig, FinetuneMode, ModelConfig, Precision
from common.errors import UsageError
from common.messages import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounds:
    """What is trained: made-up images, one of each patient, all of whom are in every step.

    Attributes:
        architecture: timm's name of the model, all of whose layers are trained.
        image_size: in pixels.
        batch: patients.
        steps: of a round.
        private: whether with DP.
        precision: a `Precision`.
        device: a `DeviceName`.
    """

    architecture: str
    image_size: int
    batch: int
    steps: int
    private: bool
    precision: str
    device: str

    def recipe(self) -> Recipe:
        """See `Recipe`."""
        return Recipe(
            mechanism="dp_sgd" if self.private else "none",
            unit="patient",
            accountant="pld",
            delta=1e-5,
            sampling_rate=1.0,
            noise_multiplier=1.0 if self.private else 0.0,
            steps=self.steps,
            max_grad_norm=1.0,
            images_per_patient=1,
            optimizer="adam",
            learning_rate=1e-4,
            physical_batch=self.batch,
            precision=Precision(self.precision).value,
        )

    def cohort(self) -> Cohort:
        """Noise instead of images."""
        shape = (self.batch, 1, self.image_size, self.image_size)
        return Cohort(
            images=np.random.default_rng(0).random(shape, dtype=np.float32),
            labels=np.arange(self.batch) % 2,
            patients=np.arange(self.batch),
            num_patients=self.batch,
            patient_ids=(),
        )


def main(arguments: list[str]) -> None:
    """See the module."""
    rounds = Rounds(**json.loads(arguments[0]))
    torch.set_num_threads(1)
    model = SiteModel(
        config=ModelConfig(architecture=rounds.architecture, patch_size=None),
        finetune=FinetuneConfig(mode=FinetuneMode.all),
        image_size=rounds.image_size,
        num_classes=2,
        seed=1,
    )
    recipe, cohort = rounds.recipe(), rounds.cohort()
    try:
        device = devices.chosen(DeviceName(rounds.device), f"--device={rounds.device}")
        training = model.prepare(recipe, Surroundings(cohort=cohort, device=device))
    except UsageError as error:
        _say({"error": str(error)})
        return
    _say({"used_bytes": used_bytes(device)})
    for number, _ in enumerate(sys.stdin):
        training.train(cohort, recipe, RoundSeeds(sampling=number, noise=number))
        training.model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        devices.give_back(device)
        _say({"used_bytes": used_bytes(device)})


def used_bytes(device: torch.device) -> int:
    """Memory in use: of the whole GPU, by whomever, or the most that this process had."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

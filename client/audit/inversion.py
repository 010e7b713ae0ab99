"""What one update shows of an image: exactly that image without privacy, and nothing with it.

A vision transformer adds a position to each patch of an image. So the gradient of that position is
the gradient of the patch's token, and the gradient of the patch layer is the sum over patches of
(token's gradient) x (patch): linear equations whose solution is the image (Lu, Zhang, Zhao, He,
Cheng 2022, "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers", CVPR, arXiv
2112.14087). No optimisation and no guess is needed, as others need for other layers (Geiping et al.
2020, "Inverting Gradients", arXiv 2003.14053). They are solvable where a token has as many numbers
as an image has patches.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from client.data.cohort import Cohort
from client.local_model import LocalModel
from client.site import Site
from client.site_setup import SiteSetup
from common import models
from common.config import Unit
from common.errors import RunFailed, UsageError
from common.messages import Recipe, Status, TrainRequest, Weights
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.seeds import SeedSource

_WEIGHT, _POSITIONS = "patch_embed.proj.weight", "pos_embed"
_KEY = b"nobody is behind these identifiers"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Update:
    """What a hospital with one patient sent after one step.

    Attributes:
        image: (S, S) what can be made of it, in [0, 1].
        epsilon: what the hospital's ledger says the step cost; infinite without privacy.
        delta: of that.
    """

    image: NDArray[np.float64] = field(repr=False)
    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Victim:
    """Who is attacked: a hospital with one patient who has one image.

    Attributes:
        model: the shared model.
        seeds: where the hospital's randomness comes from.
    """

    model: LocalModel
    seeds: SeedSource

    def attack(self, image: NDArray[np.float32], label: int, recipe: Recipe) -> Update:
        """Let the hospital take one step by ``recipe``, and make an image of what it sends.

        The hospital is the real one: `client.site.Site` with its ledger, in a folder that is gone
        afterwards. Plain gradient descent of rate 1 is asked for, whatever ``recipe`` says: the
        server chooses that, and it hides nothing.

        Args:
            image: (1, S, S) in [0, 1].
            label: its class.
            recipe: as for a round.

        Raises:
            UsageError: if the model is not one whose image can be computed so.
            RunFailed: if the hospital does not train.
        """
        step = one_step(recipe)
        first = self.model.build()
        check(first)
        sent = models.trainable_weights(first)
        with tempfile.TemporaryDirectory(prefix="fedward-audit-") as folder:
            reply = Site(self._setup(image, label, step, Path(folder))).train(
                TrainRequest(
                    run_id="inversion",
                    round=1,
                    recipe=step,
                    frozen_sha256=models.frozen_sha256(first),
                    weights=sent,
                )
            )
        if reply.status is not Status.trained or reply.weights is None or reply.spend is None:
            raise RunFailed(f"the attacked site did not train ({reply.reason})")
        epsilon = cast("float | None", reply.spend["epsilon"])
        return Update(
            image=invert(gradients(sent, reply.weights), first),
            epsilon=math.inf if epsilon is None else epsilon,
            delta=step.delta,
        )

    def _setup(
        self, image: NDArray[np.float32], label: int, recipe: Recipe, folder: Path
    ) -> SiteSetup:
        cohort = Cohort(
            images=image[None],
            labels=np.array([label]),
            patients=np.array([0]),
            num_patients=1,
            patient_ids=("patient",),
        )
        return SiteSetup(
            name="attacked",
            cohort=cohort,
            patient_hashes=patient_hashes(cohort.patient_ids, _KEY),
            ledger=folder / "ledger.sqlite",
            replies=folder / "replies",
            budget=Budget(
                epsilon=math.inf,
                delta=recipe.delta,
                accountant=recipe.accountant,
                unit=Unit(recipe.unit),
            ),
            model=self.model,
            seeds=self.seeds,
        )


def one_step(recipe: Recipe) -> Recipe:
    """``recipe`` with one step in which every patient is, by plain gradient descent of rate 1."""
    return replace(
        recipe,
        steps=1,
        sampling_rate=1.0,
        optimizer="sgd",
        learning_rate=1.0,
        momentum=0.0,
        proximal_mu=0.0,
        controlled=False,
        synthetic_ratio=0.0,
        synthetic_as_patients=False,
        augmentation_multiplicity=1,
    )


def plain(recipe: Recipe) -> Recipe:
    """The same recipe without privacy."""
    return replace(recipe, mechanism="none", noise_multiplier=0.0)


def gradients(sent: Weights, returned: Weights) -> Weights:
    """What a server learns of the one step of rate 1 between two models."""
    return {name: value - returned[name] for name, value in sent.items()}


def check(model: nn.Module) -> None:
    """Refuse a model whose patches or positions are not there or not trained.

    Raises:
        UsageError: as said.
    """
    trained = {name for name, p in _named(model) if p.requires_grad}
    if not {_WEIGHT, _POSITIONS} <= trained:
        raise UsageError(
            "model: the inversion is of vision transformers whose patches and positions are "
            "trained; use model=vit_tiny finetune=all"
        )


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return cast("Iterator[tuple[str, nn.Parameter]]", model.named_parameters())


def invert(found: Weights, model: nn.Module) -> NDArray[np.float64]:
    """(S, S) the image in [0, 1] behind gradients ``found`` of one image of ``model``."""
    rows, columns = cast("tuple[int, int]", cast("Any", model).patch_embed.grid_size)
    kernel = found[_WEIGHT].astype(np.float64)
    side = kernel.shape[-1]
    tokens = found[_POSITIONS][0].astype(np.float64)[-rows * columns :]
    patches = np.linalg.lstsq(tokens.T, kernel.reshape(len(kernel), -1), rcond=None)[0]
    grid = patches.reshape(rows, columns, side, side).swapaxes(1, 2)
    return np.clip((grid.reshape(rows * side, columns * side) + 1) / 2, 0.0, 1.0)

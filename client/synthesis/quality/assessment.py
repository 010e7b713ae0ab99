"""Everything that is measured of a set of synthetic images, in one go."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from client.data.cohort import Cohort
from client.synthesis.quality.backbone import Backbone
from client.synthesis.quality.closeness import FEWEST, in_features, in_pixels
from client.synthesis.quality.frechet import frechet_distance, frechet_radiomics_distance
from client.synthesis.quality.images import Features, LabelledImages, check_images
from client.synthesis.quality.manifold import PrecisionRecall, precision_recall
from client.synthesis.quality.memorisation import Memorisation, Space, memorisation
from client.synthesis.quality.progress import Progress, silent
from client.synthesis.quality.radiomics import radiomics
from client.synthesis.quality.utility import Labelled, Utility, utility
from common.config import TaskKind
from common.errors import UsageError
from common.seeds import derive_seed
from common.task import Task

COPY_BELOW = {"features": 0.2, "pixels": 0.15}
"""Scores below which an image counts as copied; see docs/synthesis-quality.md for the evidence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QualitySettings:
    """How to measure (public).

    Attributes:
        backbone: Whose features are compared.
        task: What the labels mean.
        seed: Decides which images are left out where sets must have equal sizes, and redraws.
        k: Of precision and recall.
        progress: Told how far it is.
    """

    backbone: Backbone
    task: Task
    seed: int = 0
    k: int = 3
    progress: Progress = silent


@dataclass(frozen=True, kw_only=True, slots=True)
class Distances:
    """Frechet distances from the training images; derived from patients.

    Attributes:
        real: Of the held-out images: what a perfect generator would reach at that size.
        synthetic: Of as many synthetic images, drawn by the seed: to be compared with ``real``.
        synthetic_all: Of all synthetic images: less biased, not to be compared with ``real``.
    """

    real: float
    synthetic: float
    synthetic_all: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """What `assess` measured; derived from patients, stays at the site.

    Attributes:
        backbone: Whose features.
        num_synthetic: Images.
        num_train: Images.
        num_held_out: Images.
        frechet: On the backbone's features.
        radiomics: On radiomics-like features, z-scored by the training images.
        num_equal: How many images of each set precision and recall compare.
        manifold: Precision and recall of synthetic images against training ones.
        manifold_real: Of held-out images against training ones: what a perfect generator reaches.
        utility: Trained on synthetic, tested on real.
        memorisation: Whether training patients were kept.
        spaces: Scores of patients, which `client.synthesis.quality.answer` counts with noise.
    """

    backbone: str
    num_synthetic: int
    num_train: int
    num_held_out: int
    frechet: Distances
    radiomics: Distances
    num_equal: int
    manifold: PrecisionRecall
    manifold_real: PrecisionRecall
    utility: Utility
    memorisation: Memorisation
    spaces: tuple[Space, ...] = field(repr=False)

    def to_dict(self) -> dict[str, object]:
        """For quality.json, which stays in the hospital as the object does."""
        kept = self.memorisation
        worth = self.utility
        return {
            "schema": "fedward.quality/1",
            "stays_in_the_hospital": True,
            "backbone": self.backbone,
            "num_synthetic_images": self.num_synthetic,
            "num_train_images": self.num_train,
            "num_held_out_images": self.num_held_out,
            "frechet": asdict(self.frechet),
            "frechet_radiomics": asdict(self.radiomics),
            "manifold": {
                "num_images": self.num_equal,
                "synthetic": asdict(self.manifold),
                "real": asdict(self.manifold_real),
            },
            "utility": {
                "auroc_synthetic": worth.synthetic,
                "auroc_synthetic_ci95": list(worth.synthetic_ci95),
                "auroc_real": worth.real,
                "auroc_real_ci95": list(worth.real_ci95),
                "gap_ci95": list(worth.gap_ci95),
            },
            "memorisation": {
                "suspected": kept.suspected,
                "copied_patients": kept.copied,
                "p": kept.p,
                "num_train_patients": kept.num_train,
                "num_held_out_patients": kept.num_held_out,
                "spaces": [asdict(space) for space in kept.spaces],
            },
        }


def assess(
    synthetic: LabelledImages, train: Cohort, held_out: Cohort, *, settings: QualitySettings
) -> Quality:
    """Measures synthetic images against training patients and patients the generator never saw.

    Guarantees: none for a patient. Every figure is exact, so all of it stays at the site.

    Time: nearly all of it for the features of the backbone (about 75 ms of one core an image for
    a ViT-S/14 at 126 px), 14 ms an image for radiomics at 128 px, and the pixels
    (1,500 real x 3,000 synthetic images: about 20 s). Memory: the images, and some 100 MB.

    Args:
        synthetic: At least 10 images, some of each class.
        train: The patients that the generator was trained on.
        held_out: Patients it never saw, drawn at random like those of ``train``.
        settings: How to measure.

    Raises:
        UsageError: The sets do not fit each other or the task, or are too small.
    """
    _check(synthetic, train, held_out, settings)
    progress, see = settings.progress, settings.backbone.features
    seen = [
        see(images, what=f"features of {name} images", progress=progress)
        for name, images in _named(synthetic, train, held_out)
    ]
    texture = [
        radiomics(images, what=f"radiomics of {name} images", progress=progress)
        for name, images in _named(synthetic, train, held_out)
    ]
    return _figures(synthetic, train, held_out, (seen, texture), settings)


def _named(
    synthetic: LabelledImages, train: Cohort, held_out: Cohort
) -> tuple[tuple[str, np.ndarray], ...]:
    sets = (synthetic.images, train.images, held_out.images)
    return tuple(zip(("synthetic", "training", "held-out"), sets, strict=True))


def _check(
    synthetic: LabelledImages, train: Cohort, held_out: Cohort, settings: QualitySettings
) -> None:
    """What can be refused before an hour is spent."""
    if settings.task.kind is TaskKind.multilabel:
        raise UsageError("quality of synthetic images: not for a multi-label task")
    for name, images in _named(synthetic, train, held_out):
        check_images(images, f"{name} images")
    sizes = {images.shape[-1] for _, images in _named(synthetic, train, held_out)}
    if len(sizes) != 1 or min(sizes) < 8:
        raise UsageError(f"images of {sorted(sizes)} pixels: must be of one size, at least 8")
    if len(synthetic) < FEWEST:
        raise UsageError(f"{len(synthetic)} synthetic images: at least {FEWEST} are needed")


def _figures(
    synthetic: LabelledImages,
    train: Cohort,
    held_out: Cohort,
    features: tuple[list[Features], list[Features]],
    settings: QualitySettings,
) -> Quality:
    (made, trained, held), texture = features
    few = min(len(made), len(held))
    equal = min(len(made), len(trained), len(held))
    part = [_drawn(len(rows), equal, settings.seed) for rows in (made, trained, held)]
    distances = [
        Distances(
            real=measure(reference, real[_drawn(len(real), few, settings.seed)]),
            synthetic=measure(reference, fake[_drawn(len(fake), few, settings.seed)]),
            synthetic_all=measure(reference, fake),
        )
        for measure, (fake, reference, real) in (
            (frechet_distance, (made, trained, held)),
            (frechet_radiomics_distance, texture),
        )
    ]
    spaces = _spaces(synthetic, train, held_out, (made, trained, held), settings.progress)
    return Quality(
        backbone=settings.backbone.name,
        num_synthetic=len(made),
        num_train=len(trained),
        num_held_out=len(held),
        frechet=distances[0],
        radiomics=distances[1],
        num_equal=equal,
        manifold=precision_recall(trained[part[1]], made[part[0]], k=settings.k),
        manifold_real=precision_recall(trained[part[1]], held[part[2]], k=settings.k),
        utility=utility(
            Labelled(features=made, labels=synthetic.labels),
            Labelled(features=trained, labels=train.labels),
            Labelled(features=held, labels=held_out.labels, patients=held_out.patients),
            task=settings.task,
            seed=settings.seed,
        ),
        memorisation=memorisation(spaces),
        spaces=spaces,
    )


def _spaces(
    synthetic: LabelledImages,
    train: Cohort,
    held_out: Cohort,
    features: tuple[Features, Features, Features],
    progress: Progress,
) -> tuple[Space, ...]:
    made, trained, held = features
    found = {
        "features": in_features(trained, held, made),
        "pixels": in_pixels(train.images, held_out.images, synthetic.images, progress=progress),
    }
    return tuple(
        Space.of(name, closeness, train, held_out, copy_below=COPY_BELOW[name])
        for name, closeness in found.items()
    )


def _drawn(total: int, wanted: int, seed: int) -> np.ndarray:
    """``wanted`` of ``total`` rows, drawn by the seed, in order."""
    rng = np.random.default_rng(derive_seed(seed, "quality", "equal sizes"))
    return np.sort(rng.permutation(total)[:wanted])

"""How generators are built and trained."""

from __future__ import annotations

from dataclasses import dataclass

_LOSSES = ("bce", "hinge")


@dataclass(frozen=True, kw_only=True, slots=True)
class GanSettings:
    """Plain numbers and words, all public.

    Attributes:
        width: factor of the channel numbers of Osuala et al. 2024; 1 is theirs.
        loss: ``"bce"``, theirs, with the generator's non-saturating (Goodfellow et al. 2014), or
            ``"hinge"`` (Lim and Ye 2017, arXiv 1705.02894), whose gradients vanish for images
            that the discriminator is sure of.
        steps_per_generator_step: discriminator steps for each generator step; under privacy
            several are better than one (Bie et al. 2023, arXiv 2302.02936).
        generator_learning_rate: of Adam.
        generator_batch: images of a generator step.
        ema: how much of the average of the generator's weights outlives a generator step; 0 keeps
            no average. Images are drawn from the average where there is one.
    """

    width: float = 1.0
    loss: str = "bce"
    steps_per_generator_step: int = 1
    generator_learning_rate: float = 1e-4
    generator_batch: int = 32
    ema: float = 0.0

    def __post_init__(self) -> None:
        bounds = {
            "width": (0 < self.width <= 4, "must be above 0 and at most 4"),
            "loss": (self.loss in _LOSSES, f"must be one of {', '.join(_LOSSES)}"),
            "steps_per_generator_step": (self.steps_per_generator_step >= 1, "at least 1"),
            "generator_learning_rate": (0 < self.generator_learning_rate < 1, "between 0 and 1"),
            "generator_batch": (self.generator_batch >= 1, "at least 1"),
            "ema": (0 <= self.ema < 1, "must be at least 0 and below 1"),
        }
        for name, (within, bound) in bounds.items():
            if not within:
                raise ValueError(f"{name}={getattr(self, name)!r}: {bound}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MomentSettings:
    """Plain numbers, all public; see `common.generators.cosine.CosineCode`.

    Attributes:
        detail: more of it needs more patients or a larger epsilon.
        texture: likewise.
    """

    detail: int = 4
    texture: int = 2

    def __post_init__(self) -> None:
        for name, least, most in (("detail", 2, 128), ("texture", 0, 8)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}={value!r}: must be {least} to {most}")

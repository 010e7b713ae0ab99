"""Everything from which an empty generator can be built again (public)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from common.generators import conditional_gan, moments
from common.generators.conditional_gan import ConditionalGan
from common.generators.moments import MomentGenerator
from common.generators.settings import GanSettings, MomentSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Blueprint:
    """A kind of generator, and its sizes.

    Attributes:
        settings: of the kind.
        image_size: S of its images.
        num_classes: how many classes it knows.
    """

    settings: GanSettings | MomentSettings
    image_size: int
    num_classes: int

    def build(self, seed: int = 0) -> ConditionalGan | MomentGenerator:
        """A generator that has seen nothing; random weights follow from ``seed``.

        Raises:
            UsageError: for sizes that this kind does not have.
        """
        size, num_classes = self.image_size, self.num_classes
        if isinstance(self.settings, MomentSettings):
            return moments.build(self.settings, image_size=size, num_classes=num_classes)
        return conditional_gan.build(
            self.settings, image_size=size, num_classes=num_classes, seed=seed
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        kind = "moments" if isinstance(self.settings, MomentSettings) else "dcgan"
        return {
            "kind": kind,
            "settings": asdict(self.settings),
            "image_size": self.image_size,
            "num_classes": self.num_classes,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Blueprint:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: if a field is missing, of another kind or out of
                bounds.
        """
        kinds = {"moments": MomentSettings, "dcgan": GanSettings}
        return cls(
            settings=kinds[fields["kind"]](**fields["settings"]),
            image_size=int(fields["image_size"]),
            num_classes=int(fields["num_classes"]),
        )

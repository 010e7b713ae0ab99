"""The page of the inversion demonstration: pictures, and how alike they are."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.audit.likeness import psnr, ssim
from common.errors import UsageError
from simulations.report.run_page import pages

SCHEMA = "fedward.inversion/1"
_MOST_PSNR = 99.0  # beyond it there is nothing to see


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """One picture of a row (S, S) in [0, 1]."""

    title: str
    pixels: NDArray[np.float64] = field(repr=False)
    psnr: float | None = None
    ssim: float | None = None

    @classmethod
    def beside(
        cls, original: NDArray[np.float64], title: str, pixels: NDArray[np.float64]
    ) -> Picture:
        """A picture that is to be like ``original``."""
        found = {"psnr": psnr(original, pixels), "ssim": ssim(original, pixels)}
        return cls(title=title, pixels=pixels, **found)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Picture:
        """What `to_dict` made, in 256 shades; a picture with an SSIM alone is exact.

        Raises:
            KeyError, TypeError, ValueError, OSError: it is something else.
        """
        ssim_found, psnr_found = content["ssim"], content["psnr_db"]
        exact = ssim_found is not None and psnr_found is None
        with Image.open(io.BytesIO(base64.b64decode(content["png"], validate=True))) as image:
            pixels = np.asarray(image.convert("L"), dtype=np.float64) / 255
        return cls(
            title=content["title"],
            pixels=pixels,
            psnr=math.inf if exact else psnr_found,
            ssim=ssim_found,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite figure is null."""
        figures = {"ssim": self.ssim, "psnr_db": _finite(self.psnr)}
        return {"title": self.title, "png": self._png, **figures}

    @property
    def source(self) -> str:
        """As a data URI."""
        return f"data:image/png;base64,{self._png}"

    @property
    def _png(self) -> str:
        file = io.BytesIO()
        grey = np.rint(255 * np.clip(self.pixels, 0, 1)).astype(np.uint8)
        Image.fromarray(grey).save(file, format="PNG", optimize=True)
        return base64.b64encode(file.getvalue()).decode()

    @property
    def likeness(self) -> str:
        """How alike, in a few words."""
        if self.psnr is None or self.ssim is None:
            return ""
        decibels = "over 99" if self.psnr > _MOST_PSNR else f"{self.psnr:.1f}"
        return f"SSIM {self.ssim:.2f}, PSNR {decibels} dB"


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionPage:
    """What the template shows.

    Attributes:
        rows: for each image the original, and what was made of updates.
        target: of what the noise was chosen for, in words.
        noise_multiplier: of the step.
        epsilon: what the one step costs by the ledger.
        delta: of that.
        model: name of the model.
        source: where the images come from.
        public: why they may be shown, if they may.
    """

    rows: Sequence[Sequence[Picture]]
    target: str
    noise_multiplier: float
    epsilon: float
    delta: float
    model: str
    source: str
    public: str | None

    @property
    def version(self) -> str:
        """The product's version."""
        return version("fedward")

    @property
    def found(self) -> bool:
        """Whether every image came back from the plain update."""
        return min(row[1].ssim or 0.0 for row in self.rows) > 0.9

    @property
    def answer(self) -> str:
        """What came out, in two sentences."""
        num = len(self.rows)
        lost = max(max(picture.ssim or 0.0 for picture in row[2:]) for row in self.rows)
        least = math.floor(100 * min(row[1].ssim or 0.0 for row in self.rows)) / 100
        images = "the image" if num == 1 else f"all {num} images"
        back = (
            f"From one update without privacy, {images} came back (SSIM at least {least:.2f})."
            if self.found
            else f"Without privacy, the least alike image has SSIM {least:.2f}."
        )
        return (
            f"{back} From the update with privacy, SSIM was {lost:.2f} at most; plain grey has "
            f"{self.of_grey:.2f}."
        )

    @property
    def of_grey(self) -> float:
        """Largest SSIM of a picture that shows nothing."""
        originals = [row[0].pixels for row in self.rows]
        return max(ssim(one, np.full_like(one, 0.5)) for one in originals)

    def to_dict(self) -> dict[str, Any]:
        """The same for scripts, without pictures; an infinite figure is null."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "images": self.source,
            "public": self.public,
            "noise_multiplier": self.noise_multiplier,
            "noise": self.target,
            "epsilon_of_step": _finite(self.epsilon),
            "delta": self.delta,
            "ssim_of_plain_grey": self.of_grey,
            "rows": [
                {
                    picture.title: {"ssim": picture.ssim, "psnr_db": _finite(picture.psnr)}
                    for picture in row[1:]
                }
                for row in self.rows
            ],
        }


def with_pictures(page: InversionPage) -> dict[str, Any]:
    """As `InversionPage.to_dict`, with all that the page shows."""
    pictures = [[picture.to_dict() for picture in row] for row in page.rows]
    return page.to_dict() | {"pictures": pictures}


def read_inversion(run_dir: Path) -> InversionPage | None:
    """The pictures in the folder of a run, ``None`` if there are none.

    Raises:
        UsageError: ``inversion.json`` cannot be read.
    """
    path = run_dir / "inversion.json"
    if not path.is_file():
        return None
    try:
        return _page(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not pictures of an inversion ({error})") from error


def _page(content: Mapping[str, Any]) -> InversionPage:
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema={content['schema']!r}: this version reads {SCHEMA!r} only")
    if content["public"] is None:
        raise ValueError("images that nobody called public")
    if not content["pictures"] or min(map(len, content["pictures"])) < 2:
        raise ValueError("pictures: there are none")
    epsilon = content["epsilon_of_step"]
    return InversionPage(
        rows=[[Picture.from_dict(picture) for picture in row] for row in content["pictures"]],
        target=content["noise"],
        noise_multiplier=float(content["noise_multiplier"]),
        epsilon=math.inf if epsilon is None else float(epsilon),
        delta=float(content["delta"]),
        model=content["model"],
        source=content["images"],
        public=content["public"],
    )


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def stretched(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """``image`` spread over [0, 1], so that whatever is in it is seen.

    >>> stretched(np.array([[0.4, 0.5, 0.6]])).round(2).tolist()
    [[0.0, 0.5, 1.0]]
    """
    low, high = float(image.min()), float(image.max())
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def render(page: InversionPage) -> str:
    """The HTML page: no script, no request, no other file."""
    return pages().get_template("inversion.html.jinja").render(inversion=page)

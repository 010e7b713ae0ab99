"""Every image of a study decoded once, and what is kept of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from client.data.check.finding import Finding, Severity, plural
from client.data.image import resize
from client.data.study import Record, Study
from common.errors import DataError

NEARLY_CONSTANT = 5 / 255
"""Standard deviation of the pixels below which an image shows next to nothing: five of 256 grey
levels. The median radiograph has 60, the median mass crop 20, four of 1,698 crops less than 5."""

_DIGEST_BYTES = 16
_MOST_PROBLEMS = 5  # different reasons that are told in words

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What is kept of a decoded image: about 200 bytes, whatever its size.

    Derived from patients, stays at the site.

    Attributes:
        row: Its row.
        problem: Why it cannot be read, as a predicate ("is a file of ..."), or None.
        shape: (H, W) or (D, H, W) as the study reads it; empty if it cannot.
        mean: Of the pixels, in [0, 1].
        deviation: Standard deviation of the pixels.
        digest: Equal for equal shapes and pixels; None if it cannot be read.
    """

    row: int
    problem: str | None = None
    shape: tuple[int, ...] = ()
    mean: float = field(default=0.0, repr=False)
    deviation: float = field(default=0.0, repr=False)
    digest: bytes | None = field(default=None, repr=False)


def inspect(
    study: Study, records: Sequence[Record], progress: Progress | None = None
) -> tuple[ImageFacts, ...]:
    """Decodes every image, one at a time, and keeps the facts in row order.

    Args:
        study: The study that reads them.
        records: Which images.
        progress: Told after each image how many of how many are done.
    """
    facts: list[ImageFacts] = []
    for record in sorted(records, key=lambda record: record.row):
        facts.append(_facts(study, record))
        if progress is not None:
            progress(len(facts), len(records))
    return tuple(facts)


def _facts(study: Study, record: Record) -> ImageFacts:
    try:
        image = study.read(record)
    except DataError as error:
        return ImageFacts(row=record.row, problem=_predicate(str(error), record.row))
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=_DIGEST_BYTES)
    digest.update(np.ascontiguousarray(image).data)
    return ImageFacts(
        row=record.row,
        shape=image.shape,
        mean=float(image.mean(dtype=np.float64)),
        deviation=float(image.std(dtype=np.float64)),
        digest=digest.digest(),
    )


def _predicate(text: str, row: int) -> str:
    """An error's text without the row, so that equal problems are counted together."""
    return text.partition(f"row {row} ")[2] or text


def thumbnail(image: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.uint8]:
    """An image, or the middle slice of a volume, as (size, size) grey levels."""
    flat = image[len(image) // 2] if image.ndim == 3 else image
    return np.rint(resize(flat, size) * 255).astype(np.uint8)


def unreadable(facts: Sequence[ImageFacts]) -> list[Finding]:
    """Images that cannot be decoded: training refuses them too."""
    rows: dict[str, list[int]] = {}
    for fact in facts:
        if fact.problem is not None:
            rows.setdefault(fact.problem, []).append(fact.row)
    common = sorted(rows.items(), key=lambda item: -len(item[1]))
    findings = [_unreadable(problem, tuple(own)) for problem, own in common[:_MOST_PROBLEMS]]
    others = sorted(row for _, own in common[_MOST_PROBLEMS:] for row in own)
    if others:
        findings.append(_unreadable("cannot be read for other reasons", tuple(others)))
    return findings


def _unreadable(problem: str, rows: tuple[int, ...]) -> Finding:
    each = "it" if len(rows) == 1 else "each"
    return Finding(
        code="unreadable",
        severity=Severity.blocks,
        text=f"{plural(len(rows), 'image')} cannot be used: {each} {problem}.",
        remedy="Mend or replace the files, or take their rows out of the table.",
        rows=rows,
    )


def nearly_constant(facts: Sequence[ImageFacts]) -> list[Finding]:
    """Images that show next to nothing."""
    rows = tuple(
        fact.row for fact in facts if fact.problem is None and fact.deviation < NEARLY_CONSTANT
    )
    if not rows:
        return []
    verb = "is" if len(rows) == 1 else "are"
    return [
        Finding(
            code="nearly_constant",
            severity=Severity.warning,
            text=f"{plural(len(rows), 'image')} {verb} constant or nearly so (the pixels' standard "
            "deviation is below 5 of 256 grey levels).",
            remedy="Look at them: a wrong crop, an empty exposure or a wrong window. A model "
            "learns nothing from them.",
            rows=rows,
        )
    ]

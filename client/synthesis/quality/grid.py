"""A picture of synthetic images, one row for each class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from client.synthesis.quality.images import Images, LabelledImages
from common.config import TaskKind
from common.errors import UsageError
from common.files import write_atomically
from common.task import Task

_CELL = 128  # pixels a side at least; smaller images are enlarged by a whole factor
_GAP, _MARGIN = 6, 16
_FONT = 16
_PAPER, _INK, _FRAME = 255, 20, 170
_LONGEST = 60


def class_names(task: Task) -> tuple[str, ...]:
    """What each class number is called, in order.

    >>> class_names(Task(kind=TaskKind.binary, names=("malignant",)))
    ('not malignant', 'malignant')
    """
    return (f"not {task.names[0]}", *task.names) if task.kind is TaskKind.binary else task.names


def write_grid(
    path: Path, samples: LabelledImages, *, names: Sequence[str], per_class: int = 8
) -> None:
    """Draws the first images of each class, none chosen by hand; a PNG file, whole or absent.

    Args:
        path: Where to write it.
        samples: The images.
        names: What each class number is called, a row each.
        per_class: Images in a row, at least 1.

    Raises:
        UsageError: A label has no name, or ``per_class`` is below 1.
        OSError: The folder cannot be written.
    """
    if per_class < 1:
        raise UsageError(f"per_class={per_class}: must be at least 1")
    if samples.labels.min() < 0 or samples.labels.max() >= len(names):
        raise UsageError(
            f"synthetic labels {samples.labels.min()} to {samples.labels.max()}: there are names "
            f"for 0 to {len(names) - 1}"
        )
    rows = [
        samples.images[np.flatnonzero(samples.labels == n)[:per_class]] for n in range(len(names))
    ]
    file = io.BytesIO()
    _drawn(rows, [_short(name) for name in names]).save(file, format="PNG", optimize=True)
    write_atomically(path, file.getvalue())


def _short(name: str) -> str:
    words = " ".join(name.split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 3].rstrip() + "..."


def _drawn(rows: Sequence[Images], names: Sequence[str]) -> Image.Image:
    size = rows[0].shape[-1]
    cell = size * max(1, -(-_CELL // size))
    font = ImageFont.load_default(_FONT)
    line = _FONT + 8
    pairs = zip(rows, names, strict=True)
    headings = [f"{name} (synthetic)" if len(row) else f"{name}: no image" for row, name in pairs]
    columns = max(1, *(len(row) for row in rows))
    width = max(columns * (cell + _GAP) - _GAP, *(int(font.getlength(h)) + 1 for h in headings))
    height = sum(line + (cell if len(row) else 0) + _MARGIN for row in rows)
    picture = Image.new("L", (width + 2 * _MARGIN, height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    top = _MARGIN
    for row, heading in zip(rows, headings, strict=True):
        draw.text((_MARGIN, top), heading, fill=_INK, font=font)
        top += line
        for place, image in enumerate(row):
            left = _MARGIN + place * (cell + _GAP)
            # A frame tells black or white images from the paper.
            draw.rectangle((left - 1, top - 1, left + cell, top + cell), outline=_FRAME)
            pixels = np.round(image[0] * 255).astype(np.uint8)
            scaled = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            picture.paste(scaled, (left, top))
        top += (cell if len(row) else 0) + _MARGIN
    return picture

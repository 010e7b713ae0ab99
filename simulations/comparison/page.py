"""The page of a comparison: `comparison.json` in, one self-contained HTML file out, and its files.

The page shows nothing that ``comparison.json`` does not hold, beside what others have published.
Epsilons are rounded up, never down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.files import write_atomically
from simulations.comparison import published, sheets
from simulations.comparison.answer import Tile, answer, tiles
from simulations.comparison.curves import Comparison, exceeds, leaks, spaced
from simulations.comparison.figures import Picture, pictures
from simulations.comparison.folder import Folder
from simulations.comparison.sheet import Sheet, file_name
from simulations.comparison.summary import SCHEMA
from simulations.report.page import flattened
from simulations.report.run_page import pages
from simulations.report.wording import plain

_FIGURES, _TABLES = "figures", "tables"


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonPage:
    """`comparison.json` as the template reads it.

    Attributes:
        comparison: the content of the file.
        pictures: by name.
        sheets: by name; those without a row are absent.
    """

    comparison: Comparison = field(repr=False)
    pictures: Mapping[str, Picture] = field(repr=False)
    sheets: Mapping[str, Sheet] = field(repr=False)

    @classmethod
    def of(cls, comparison: Comparison) -> ComparisonPage:
        """Draw every figure and fill every table.

        Raises:
            UsageError: the schema is not one that this version reads.
        """
        if comparison.get("schema") != SCHEMA:
            raise UsageError(
                f"schema={comparison.get('schema')!r}: this version writes pages for {SCHEMA!r}"
            )
        return cls(
            comparison=comparison,
            pictures={one.name: one for one in pictures(comparison)},
            sheets={one.name: one for one in sheets.every(comparison)},
        )

    @property
    def answer(self) -> str:
        """Two sentences."""
        return answer(self.comparison)

    @property
    def tiles(self) -> Sequence[Tile]:
        """The figures at the top."""
        return tiles(self.comparison)

    @property
    def is_one_panel(self) -> bool:
        """Whether the first figure leaves room beside it."""
        return "auroc" in self.pictures and len(self.pictures["auroc"].parts) == 1

    @property
    def phantom(self) -> bool:
        """Whether nobody was examined."""
        return self.comparison["study"]["name"] == "phantom"

    @property
    def leaking(self) -> list[str]:
        """Uses of synthetic images, or arms, whose epsilon is claimed only."""
        found = [
            cell["arm"] + ("" if cell["augment"] == "none" else f" with {spaced(cell['augment'])}")
            for cell in self.comparison["cells"]
            if leaks(cell)
        ]
        return list(dict.fromkeys(found))

    @property
    def costlier(self) -> list[str]:
        """Arms that cost more than the epsilon they stand at, but not without bound."""
        found = [
            cell["arm"] for cell in self.comparison["cells"] if exceeds(cell) and not leaks(cell)
        ]
        return list(dict.fromkeys(found))

    @property
    def checks(self) -> list[Mapping[str, Any]]:
        """Those that do not hold come first."""
        return sorted(self.comparison["checks"], key=lambda one: one["holds"])

    @property
    def num_failed(self) -> int:
        """Checks that do not hold."""
        return sum(not one["holds"] for one in self.comparison["checks"])

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Group columns, each with its name in files."""
        return [(name, file_name(name)) for name in sheets.columns(self.comparison)]

    @property
    def published(self) -> Sequence[published.PublishedPoint]:
        """What others have published on the same task."""
        return published.published(self.comparison["study"]["name"])

    @property
    def source(self) -> str:
        """Of what others have published."""
        return published.SOURCE

    @property
    def caveat(self) -> str:
        """About what others have published."""
        return published.CAVEAT

    @property
    def seeds(self) -> list[int]:
        """Of all runs."""
        return sorted({one["seed"] for one in self.comparison["trials"]})

    @property
    def settings(self) -> list[tuple[str, str]]:
        """The shared configuration, one dotted name per line."""
        return [(name, plain(value)) for name, value in flattened(self.comparison["config"])]

    @property
    def links(self) -> Mapping[str, str]:
        """By folder of a trial, its report; folders elsewhere are named, not linked."""
        folders = (one["folder"] for one in self.comparison["trials"])
        return {
            one: f"{one}/report.html"
            for one in folders
            if one is not None and not Path(one).is_absolute() and ".." not in Path(one).parts
        }


def render(page: ComparisonPage) -> str:
    """The HTML; it needs no network, no script and no other file."""
    return pages().get_template("comparison.html.jinja").render(page=page, told=page.comparison)


def write(comparison: Comparison, folder: Path) -> Path:
    """Write the page, the figures and the tables, each whole or not at all; returns the page.

    Raises:
        UsageError: the schema is not one that this version reads.
        OSError: the folder cannot be written.
    """
    page = ComparisonPage.of(comparison)
    html = render(page)
    for place, content in _files(page):
        path = folder / place
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)
    path = Folder(path=folder).page
    write_atomically(path, html)
    return path


def _files(page: ComparisonPage) -> Iterator[tuple[str, str | bytes]]:
    for name, picture in page.pictures.items():
        yield f"{_FIGURES}/{name}.svg", picture.svg
        yield f"{_FIGURES}/{name}.pdf", picture.pdf
        yield f"{_FIGURES}/{name}.csv", picture.csv
    for name, sheet in page.sheets.items():
        yield f"{_TABLES}/{name}.csv", sheet.to_csv()

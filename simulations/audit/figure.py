"""How well attacks do on several audited runs: one figure, claim by claim, for papers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from common.errors import UsageError
from simulations.audit.panel import AttackRow, Panel, read_panel
from simulations.report.run_page import pages
from simulations.report.wording import round_up

_COLOURS = {"loss": "#0b5a8a", "RMIA": "#b3440c", "LiRA": "#11704b", "control": "#7a8793"}
_WIDTH, _LEFT, _RIGHT, _TOP, _FOOT = 720, 190, 700, 52, 48
_LINE, _GAP, _HEAD = 11, 10, 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One attack at one hospital; ``y`` is where it is drawn."""

    attack: str
    auc: float
    low: float
    high: float
    y: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One hospital of one run."""

    label: str
    marks: Sequence[Mark]

    @property
    def middle(self) -> float:
        """Where its name stands."""
        return (self.marks[0].y + self.marks[-1].y) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Hospitals with the same claim."""

    title: str
    y: float
    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What the template draws (private if one of the runs' studies is).

    Attributes:
        groups: by claim; what claims nothing comes first.
        public: whether anyone may see it.
    """

    groups: Sequence[Group]
    public: bool
    width: int = field(default=_WIDTH)
    left: int = field(default=_LEFT)
    top: int = field(default=_TOP)

    @property
    def _marks(self) -> list[Mark]:
        return [mark for group in self.groups for row in group.rows for mark in row.marks]

    @property
    def attacks(self) -> list[str]:
        """Names, as they come."""
        return list(dict.fromkeys(mark.attack for mark in self._marks))

    @property
    def bottom(self) -> float:
        """Where the last row ends."""
        return self._marks[-1].y + _GAP

    @property
    def height(self) -> float:
        """Of the whole."""
        return self.bottom + _FOOT

    @property
    def low(self) -> float:
        """The left end of the scale."""
        return min(0.4, math.floor(10 * min(mark.low for mark in self._marks)) / 10)

    @property
    def high(self) -> float:
        """The right end."""
        return max(0.6, math.ceil(10 * max(mark.high for mark in self._marks)) / 10)

    @property
    def ticks(self) -> list[float]:
        """Tenths."""
        return [tenth / 10 for tenth in range(round(10 * self.low), round(10 * self.high) + 1)]

    @property
    def title(self) -> str:
        """What is drawn."""
        return "Membership attacks beside the epsilon that is claimed"

    @property
    def description(self) -> str:
        """The same for who cannot see it."""
        parts = []
        for group in self.groups:
            aucs = [mark.auc for row in group.rows for mark in row.marks if mark.attack in _ATTACKS]
            parts.append(f"{group.title}: AUC {min(aucs):.2f} to {max(aucs):.2f}")
        return "; ".join(parts) + "."

    def x(self, auc: float) -> float:
        """Where an AUC stands."""
        share = (auc - self.low) / (self.high - self.low)
        return round(_LEFT + share * (_RIGHT - _LEFT), 1)

    def colour(self, attack: str) -> str:
        """Of an attack; the same in every figure."""
        return _COLOURS.get(attack, "#16202a")


_ATTACKS = frozenset(_COLOURS) - {"control"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Site:
    epsilon: float
    name: str
    folder: str
    attacks: Sequence[AttackRow]

    @property
    def title(self) -> str:
        """Claims that print alike are one."""
        return f"epsilon {round_up(self.epsilon)}" if math.isfinite(self.epsilon) else "no privacy"


def figure_of(run_dirs: Sequence[Path]) -> Figure:
    """The figure of all sites of audited runs.

    Raises:
        UsageError: a folder holds no audit, or one that cannot be read.
    """
    panels = {path: _panel(path) for path in run_dirs}
    return Figure(
        groups=list(_groups(panels)), public=all(panel.public for panel in panels.values())
    )


def render(figure: Figure) -> str:
    """The figure as SVG: no script, no request, text stays text."""
    return pages().get_template("audit_figure.svg.jinja").render(figure=figure)


def _panel(path: Path) -> Panel:
    found = read_panel(path)
    if found is None:
        raise UsageError(f"{path}: no audit of a run; use fedward audit run")
    return found


def _groups(panels: Mapping[Path, Panel]) -> Iterator[Group]:
    sites = [
        _Site(
            epsilon=math.inf if gauge.claimed is None else gauge.claimed,
            name=site.name,
            folder=path.name,
            attacks=[*site.rows, *([] if site.control is None else [site.control])],
        )
        for path, panel in panels.items()
        for site, gauge in zip(panel.sites, panel.gauges[-len(panel.sites) :], strict=True)
    ]
    y = float(_TOP)
    for title, mine in groupby(sorted(sites, key=lambda one: -one.epsilon), lambda one: one.title):
        rows, below, members = [], y + _HEAD, list(mine)
        names = [one.name for one in members]
        for one in members:
            label = one.name if names.count(one.name) == 1 else f"{one.name}, {one.folder}"
            marks = [
                Mark(attack=a.name, auc=a.auc, low=a.low, high=a.high, y=below + _LINE * i)
                for i, a in enumerate(one.attacks)
            ]
            rows.append(Row(label=label, marks=marks))
            below = marks[-1].y + _LINE + _GAP
        yield Group(title=title, y=y, rows=rows)
        y = below

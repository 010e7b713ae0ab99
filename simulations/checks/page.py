"""The page of a data check: one self-contained HTML file that stays in the hospital."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

from PIL import Image

from client.data.check.finding import Finding, Severity, ordered, plural
from client.data.check.size import NoiseToSignal
from client.data.check.study_check import Picture, StudyCheck
from client.data.check.summary import Count, Histogram
from common.config import TaskKind
from common.task import Task
from simulations.report.run_page import pages

_SEVERITIES = {
    Severity.blocks: "Blocks training:",
    Severity.warning: "Warning:",
    Severity.note: "Note:",
}
_MOST_LABELS = 10  # along the axis of a histogram


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckPage:
    """A data check as the template reads it.

    Attributes:
        check: What was found.
        task: What the labels mean.
        more: Findings that follow from the configuration: whether it can be split, dealt out and
            trained privately.
        cohorts: Noise over signal; empty without privacy.
        recipe: The privacy that was asked for, or why there are no cohorts, in words.
    """

    check: StudyCheck
    task: Task
    more: tuple[Finding, ...]
    cohorts: tuple[NoiseToSignal, ...]
    recipe: str

    most_rows = 200

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them, worst first."""
        return ordered((*self.check.findings, *self.more))

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """Those for which training would refuse the study."""
        return tuple(one for one in self.findings if one.severity is Severity.blocks)

    @property
    def tally(self) -> str:
        """How many findings of each kind."""
        counts = Counter(finding.severity for finding in self.findings)
        words = [
            f"{counts[Severity.blocks]} blocking" if counts[Severity.blocks] else "",
            plural(counts[Severity.warning], "warning") if counts[Severity.warning] else "",
            plural(counts[Severity.note], "note") if counts[Severity.note] else "",
        ]
        return ", ".join(word for word in words if word) or "none"

    @property
    def answer(self) -> str:
        """The outcome in one or two sentences."""
        summary = self.check.summary
        what = f"{plural(summary.num_images, summary.kind)} of "
        what += plural(summary.num_patients, "patient")
        if self.blocking:
            return f"{what} were checked. {self.obstacle}"
        return f"{what} were checked, and nothing blocks training; {self.tally}."

    @property
    def obstacle(self) -> str:
        """What blocks training: the first finding that does, and how many more there are."""
        others = len(self.blocking) - 1
        more = f" {plural(others, 'other finding')} of this kind." if others else ""
        return f"Training is blocked: {self.blocking[0].text}{more}"

    @property
    def version(self) -> str:
        """The product's version."""
        return version("fedward")

    def severity(self, finding: Finding) -> str:
        """What follows from it, in words."""
        return _SEVERITIES[finding.severity]

    def percent(self, images: int) -> float:
        """A share of all images."""
        return round(100 * images / self.check.summary.num_images, 1)

    def source(self, picture: Picture) -> str:
        """A picture as a data URI."""
        file = io.BytesIO()
        Image.fromarray(picture.pixels).save(file, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def label(self, picture: Picture) -> str:
        """The labels of an image in few words."""
        names = self.task.names
        if self.task.kind is TaskKind.multiclass:
            return names[picture.labels[0]]
        found = [name for name, label in zip(names, picture.labels, strict=True) if label == 1]
        if self.task.kind is TaskKind.binary:
            return found[0] if found else f"not {names[0]}"
        return ", ".join(found) or "no finding"

    def discrete(self, chart: Histogram) -> bool:
        """Whether a bar stands for a number and not for a range."""
        return chart.unit == "patients"

    def step(self, chart: Histogram) -> int:
        """Every how many bars one is labelled."""
        return max(1, -(-len(chart.labels) // _MOST_LABELS))


def render(page: CheckPage) -> str:
    """The HTML page: no script, no request, no other file."""
    return pages().get_template("check.html.jinja").render(page=page)


def to_dict(page: CheckPage) -> dict[str, object]:
    """The same for scripts; it stays in the hospital as the page does."""
    summary = page.check.summary
    return {
        "schema": "fedward.check/1",
        "stays_in_the_hospital": True,
        "study": summary.study,
        "kind": summary.kind,
        "num_images": summary.num_images,
        "num_patients": summary.num_patients,
        "blocked": bool(page.blocking),
        "findings": [_finding(one) for one in page.findings],
        "splits": list(summary.splits),
        "labels": _counts(summary.labels),
        "groups": {name: _counts(rows) for name, rows in summary.groups.items()},
        "sites": _counts(summary.sites),
        "sizes": _counts(summary.sizes),
        "noise_to_signal": [
            {
                "who": one.who,
                "num_patients": one.num_patients,
                "num_sites": one.num_sites,
                "num_weights": one.num_weights,
                "sampling_rate": one.sampling_rate,
                "steps": one.steps,
                "noise_multiplier": one.noise_multiplier,
                "ratio": one.ratio,
                "patients_needed": one.patients_needed,
            }
            for one in page.cohorts
        ],
    }


def _finding(one: Finding) -> dict[str, object]:
    return {
        "code": one.code,
        "severity": one.severity.value,
        "text": one.text,
        "remedy": one.remedy,
        "rows": list(one.rows),
    }


def _counts(rows: Sequence[Count]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]

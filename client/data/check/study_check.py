"""Everything that is checked of one study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from client.data.check.coverage import unsaid
from client.data.check.duplicates import duplicates, groups_of_equals
from client.data.check.finding import Finding, Severity, ordered, plural
from client.data.check.header import header_findings, read_headers
from client.data.check.inspection import inspect, nearly_constant, thumbnail, unreadable
from client.data.check.labels import LabelRule, broken_rules, odd_ones_in_folders
from client.data.check.splits import torn_patients
from client.data.check.summary import Summary, summarise
from client.data.rows import read_rows, study_folder
from client.data.study import Record, Study
from common.config import DataConfig, StudyKind
from common.errors import DataError

_THUMBNAIL_PIXELS = 96
_NUM_SAMPLES = 24
_PICTURES_OF_A_FINDING = 8

Report = Callable[[str, int, int], None]
"""Told what is being done, how many of how many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A small picture of one image; derived from a patient, stays at the site.

    Attributes:
        row: Its row.
        labels: Its labels.
        pixels: (96, 96) grey levels, of a volume the middle slice.
    """

    row: int
    labels: tuple[int, ...] = field(repr=False)
    pixels: npt.NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyCheck:
    """What was counted and found; derived from patients, stays at the site.

    Attributes:
        summary: The study in numbers.
        findings: Worst first.
        pictures: By row: a sample of the study and the first images of each finding.
        sample: Rows of the sample, ascending.
    """

    summary: Summary
    findings: tuple[Finding, ...]
    pictures: Mapping[int, Picture] = field(repr=False)
    sample: tuple[int, ...] = field(repr=False)

    @property
    def blocked(self) -> bool:
        """Whether training would refuse the study."""
        return any(finding.severity is Severity.blocks for finding in self.findings)

    def pictures_of(self, finding: Finding) -> list[Picture]:
        """Pictures of the first rows of a finding, as far as they can be read."""
        rows = finding.rows[:_PICTURES_OF_A_FINDING]
        return [self.pictures[row] for row in rows if row in self.pictures]


def check_study(study: Study, config: DataConfig, report: Report) -> StudyCheck:
    """Decodes every image of ``study`` once and says what its engineer should know.

    Memory: one decoded image at a time, and about 200 bytes for each.

    Raises:
        DataError: A rule of ``data.label_rules`` cannot be used.
    """
    records = sorted(study.records, key=lambda record: record.row)
    rules = [LabelRule.parse(text) for text in config.label_rules]
    cells = _cells(study, config, rules)
    facts = inspect(study, records, lambda done, total: report("decoding images", done, total))
    headers = read_headers(
        records, lambda done, total: report("reading DICOM headers", done, total)
    )
    findings = ordered(
        [
            *unreadable(facts),
            *torn_patients(records),
            *duplicates(groups_of_equals(records, facts)),
            *odd_ones_in_folders(records),
            *broken_rules(records, rules, cells),
            *nearly_constant(facts),
            *_enlarged([fact.shape[-2:] for fact in facts if fact.shape], config.image_size),
            *header_findings(headers),
            *unsaid(records),
        ]
    )
    readable = {fact.row for fact in facts if fact.problem is None}
    sample = _sample([record for record in records if record.row in readable])
    wanted = {row for finding in findings for row in finding.rows[:_PICTURES_OF_A_FINDING]}
    shown = (wanted & readable) | set(sample)
    return StudyCheck(
        summary=summarise(study, records, facts),
        findings=findings,
        pictures={record.row: _picture(study, record) for record in records if record.row in shown},
        sample=sample,
    )


def _cells(
    study: Study, config: DataConfig, rules: Sequence[LabelRule]
) -> dict[int, Mapping[str, str]]:
    """The cells that the rules look at, by row."""
    if not rules:
        return {}
    if config.kind in {StudyKind.phantom, StudyKind.dicom_folder, StudyKind.cbis_ddsm}:
        raise DataError("data.label_rules: only a study whose rows are those of a table has rules")
    if study.task.labels_per_image != 1:
        raise DataError("data.label_rules: only a study with one label for each image has rules")
    columns = {f"data.label_rules.{rule.column}": rule.column for rule in rules}
    rows = read_rows(study_folder(config), config.table).rows(columns)
    return {row.number: row.cells for row in rows}


def _enlarged(sizes: Sequence[tuple[int, ...]], image_size: int) -> list[Finding]:
    """Whether most images are smaller than what the model is shown."""
    small = sum(min(size) < image_size for size in sizes)
    if small <= len(sizes) / 2:
        return []
    return [
        Finding(
            code="enlarged",
            severity=Severity.note,
            text=f"{plural(small, 'image')} of {len(sizes):,} are smaller than "
            f"data.image_size={image_size} and will be enlarged.",
            remedy="A smaller data.image_size shows a model as much and costs less.",
        )
    ]


def _sample(records: Sequence[Record]) -> tuple[int, ...]:
    """Rows at even distances within each label, as many of each as there are labels to share."""
    by_label: dict[tuple[int, ...], list[int]] = {}
    for record in records:
        by_label.setdefault(record.labels, []).append(record.row)
    strata = sorted(by_label.values(), key=len, reverse=True)[:_NUM_SAMPLES]
    each = _NUM_SAMPLES // max(len(strata), 1)
    rows = {own[index * len(own) // each] for own in strata for index in range(each)}
    return tuple(sorted(rows))


def _picture(study: Study, record: Record) -> Picture:
    return Picture(
        row=record.row,
        labels=record.labels,
        pixels=thumbnail(study.read(record), _THUMBNAIL_PIXELS),
    )

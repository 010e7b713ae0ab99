"""What DICOM headers say about a person, and about writing within the pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from client.data.check.finding import Finding, Severity, plural
from client.data.check.inspection import Progress
from client.data.study import Record
from common.errors import DataError

IDENTIFYING = (
    "PatientName",
    "PatientBirthDate",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientMotherBirthName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "AccessionNumber",
)
"""Elements that name a person (from DICOM PS3.15, table E.1-1). ``PatientID`` is not among them:
reading patients needs it, and it is hashed at once."""

_REMOVED, _BURNED, _FACE = (
    "PatientIdentityRemoved",
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
)

Tags = Mapping[str, tuple[str, ...]]


def read_headers(records: Sequence[Record], progress: Progress | None = None) -> dict[int, Tags]:
    """Reads those elements of each record that is DICOM, of the first file where it is a series.

    Args:
        records: Which records; others than DICOM are passed over.
        progress: Told after each record how many of how many are done.

    Returns:
        The elements with a value, by row. Files that cannot be parsed are left out: decoding
        tells of them.
    """
    headers: dict[int, Tags] = {}
    for number, record in enumerate(records, start=1):
        path = _first_file(record.path)
        if path is not None and _is_dicom(path):
            # pydicom starts only where there is DICOM.
            from client.data.dicom import read_tags

            with contextlib.suppress(DataError):
                headers[record.row] = read_tags(path, (*IDENTIFYING, _REMOVED, _BURNED, _FACE))
        if progress is not None:
            progress(number, len(records))
    return headers


def _first_file(path: Path) -> Path | None:
    if not path.is_dir():
        return path
    return min((child for child in path.iterdir() if child.is_file()), default=None)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def header_findings(headers: Mapping[int, Tags]) -> list[Finding]:
    """What these elements mean. Warnings only, since pixels and headers stay at the site."""
    return [*_identifying(headers), *_said_yes(headers), *_says_nothing(headers)]


def _identifying(headers: Mapping[int, Tags]) -> list[Finding]:
    rows: list[int] = []
    found: set[str] = set()
    for row, tags in headers.items():
        # A file that says its identity was removed holds a stand-in in place of the name.
        if "YES" not in tags.get(_REMOVED, ()):
            own = [name for name in IDENTIFYING if name in tags]
            found.update(own)
            if own:
                rows.append(row)
    if not rows:
        return []
    names = ", ".join(name for name in IDENTIFYING if name in found)
    return [
        Finding(
            code="identifying_tags",
            severity=Severity.warning,
            text=f"{plural(len(rows), 'DICOM header')} may name a person ({names}) and "
            f"{'does' if len(rows) == 1 else 'do'} not say that the identity was removed.",
            remedy="Training reads pixels only and nothing of a header leaves the site. "
            "De-identify the files before anyone copies them elsewhere.",
            rows=tuple(sorted(rows)),
        )
    ]


def _said_yes(headers: Mapping[int, Tags]) -> list[Finding]:
    findings: list[Finding] = []
    for name, code, what in (
        (_BURNED, "burned_in_annotation", "writing within the pixels"),
        (_FACE, "recognizable_features", "a recognizable face"),
    ):
        rows = tuple(sorted(row for row, tags in headers.items() if "YES" in tags.get(name, ())))
        if rows:
            findings.append(
                Finding(
                    code=code,
                    severity=Severity.warning,
                    text=f"{plural(len(rows), 'DICOM header')} "
                    f"{'says' if len(rows) == 1 else 'say'} that there is {what} ({name} YES).",
                    remedy="Look at them: names may be written there, and a model may learn "
                    "letters in place of findings. Leave them out or blank the place.",
                    rows=rows,
                )
            )
    return findings


def _says_nothing(headers: Mapping[int, Tags]) -> list[Finding]:
    rows = tuple(sorted(row for row, tags in headers.items() if _BURNED not in tags))
    if not rows:
        return []
    return [
        Finding(
            code="burned_in_unknown",
            severity=Severity.note,
            text=f"{plural(len(rows), 'DICOM header')} "
            f"{'does' if len(rows) == 1 else 'do'} not say whether there is writing within the "
            f"pixels ({_BURNED} is absent).",
            remedy="Look at a few; ultrasound, secondary captures and scanned films often have it.",
            rows=rows,
        )
    ]

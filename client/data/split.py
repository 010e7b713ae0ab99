"""Training, validation and test parts of a study, whole patients always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.data.study import SPLITS, Record, patient_labels
from common.errors import DataError

# Keeps the draw of the split apart from other draws that start from the same seed.
_PURPOSE = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Three parts without a common patient, each in row order.

    *Guarantees*: no patient has records in two parts.
    """

    train: tuple[Record, ...]
    val: tuple[Record, ...]
    test: tuple[Record, ...]


def split_patients(
    records: Sequence[Record], *, val_fraction: float, test_fraction: float, seed: int
) -> Split:
    """Splits records by patient, by the official split where they carry one.

    Parts that the study does not name are drawn from its training patients, stratified by the
    patient's label (positive if any image is). The result depends on the set of records and the
    seed, not on the order of the records.

    Args:
        records: All records of a study.
        val_fraction: Share of the patients drawn for validation, in (0, 0.5).
        test_fraction: Share of the patients drawn for test, in (0, 0.5).
        seed: A number from 0.

    Raises:
        DataError: A patient is in two parts of the official split, some records lack one, or a
            part would be empty.
    """
    sides = _official_sides(records)
    fractions = {"val": val_fraction, "test": test_fraction}
    missing = {name: fractions[name] for name in fractions if name not in set(sides.values())}
    labels = patient_labels(record for record in records if sides[record.patient] == "train")
    sides |= _draw(labels, missing, seed)
    parts = {
        name: tuple(
            sorted((r for r in records if sides[r.patient] == name), key=lambda record: record.row)
        )
        for name in SPLITS
    }
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"data: the {name} part is empty; {len(sides)} patients are too few, or the "
                "official split has no train rows"
            )
    return Split(**parts)


def _official_sides(records: Sequence[Record]) -> dict[str, str]:
    """Maps each patient to the side the study gives; all to ``train`` where it gives none."""
    without = sum(record.split is None for record in records)
    if 0 < without < len(records):
        raise DataError(f"data: {without} of {len(records)} rows have no official split")
    sides: dict[str, set[str]] = {}
    for record in records:
        sides.setdefault(record.patient, set()).add(record.split or "train")
    torn = sum(len(names) > 1 for names in sides.values())
    if torn:
        raise DataError(
            f"data: {torn} of {len(sides)} patients are in two parts of the official split; mend "
            "the table or split by patient with data.columns.split=null"
        )
    return {patient: names.pop() for patient, names in sides.items()}


def _draw(labels: dict[str, int], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """Draws patients of each label for each named part; the others are not in the result."""
    generator = np.random.default_rng([seed, _PURPOSE])
    drawn: dict[str, str] = {}
    for label in sorted(set(labels.values())):
        stratum = sorted(patient for patient in labels if labels[patient] == label)
        shuffled = [stratum[index] for index in generator.permutation(len(stratum))]
        start = 0
        for name, fraction in fractions.items():
            stop = start + _share(fraction, len(stratum))
            drawn |= dict.fromkeys(shuffled[start:stop], name)
            start = stop
    return drawn


def _share(fraction: float, size: int) -> int:
    """At least one of three: a part without one of the classes cannot be evaluated."""
    return max(1 if size >= 3 else 0, round(fraction * size))

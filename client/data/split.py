"""Train, validation and test: whole patients, so that no one is on two sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from client.data.study import SPLITS, Record, patient_labels
from common.errors import DataError, UsageError

# Keep the draws of the split and of the folds apart from others that start from the same seed.
_SPLIT, _FOLDS = 1, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Three parts without a common patient, each in row order.

    *Guarantees*: no patient has records in two parts.
    """

    train: tuple[Record, ...]
    val: tuple[Record, ...]
    test: tuple[Record, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """One of several ways to leave some patients out, each part in row order.

    *Guarantees*: no patient has records in both parts.
    """

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]


def split_patients(
    records: Sequence[Record], *, val_fraction: float, test_fraction: float, seed: int
) -> Split:
    """Splits records by patient, by the official split where they carry one.

    Parts that the study does not name are drawn from its training patients, stratified by the
    patient's label (see `patient_labels`) and, as far as numbers allow, by groups and site. The
    result depends on the set of records and the seed, not on the order of the records, nor on the
    key under which patients are hashed.

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
    strata = _strata([record for record in records if sides[record.patient] == "train"], seed)
    sides |= _draw(strata, missing, seed)
    parts = {
        name: _in_row_order(record for record in records if sides[record.patient] == name)
        for name in SPLITS
    }
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"data: the {name} part is empty; {len(sides)} patients are too few, or the "
                "official split has no train rows"
            )
    return Split(**parts)


def fold_patients(records: Sequence[Record], *, num_folds: int, seed: int) -> tuple[Fold, ...]:
    """Deals patients into ``num_folds`` parts and leaves out each of them once.

    Stratified like `split_patients`: of each label, each fold holds the same number of patients
    but for one. An official split is not looked at: pass the records that are to be divided.

    Raises:
        UsageError: There are fewer than 2 folds, or fewer patients than folds.
    """
    strata = _strata(records, seed)
    patients = [patient for stratum in strata.values() for patient in stratum]
    if not 2 <= num_folds <= len(patients):
        raise UsageError(
            f"num_folds={num_folds}: must be 2 to {len(patients)}, the number of patients"
        )
    first = int(np.random.default_rng([seed, _FOLDS]).integers(num_folds))
    fold_of = {patient: (first + place) % num_folds for place, patient in enumerate(patients)}
    return tuple(
        Fold(
            train=_in_row_order(r for r in records if fold_of[r.patient] != number),
            held_out=_in_row_order(r for r in records if fold_of[r.patient] == number),
        )
        for number in range(num_folds)
    )


def _in_row_order(records: Iterable[Record]) -> tuple[Record, ...]:
    return tuple(sorted(records, key=lambda record: record.row))


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


def _strata(records: Sequence[Record], seed: int) -> dict[int, list[str]]:
    """Patients of each label, those of one group and site side by side, shuffled among them.

    Hashes of patients differ from key to key; the first row of a patient does not.
    """
    labels = patient_labels(records)
    first: dict[str, Record] = {}
    for record in _in_row_order(records):
        first.setdefault(record.patient, record)
    places = np.random.default_rng([seed, _SPLIT, len(labels)]).permutation(len(labels))
    place = dict(zip(labels, places.tolist(), strict=True))

    def likeness(patient: str) -> tuple[list[tuple[str, str]], str, int]:
        record = first[patient]
        return sorted(record.groups.items()), record.site or "", place[patient]

    return {
        label: sorted((name for name in labels if labels[name] == label), key=likeness)
        for label in sorted(set(labels.values()))
    }


def _draw(strata: dict[int, list[str]], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """Draws patients of each stratum for each named part; the others are not in the result.

    At even steps from a random start, so that neighbours (of one group) are drawn in proportion.
    """
    generator = np.random.default_rng([seed, _SPLIT])
    drawn: dict[str, str] = {}
    for stratum in strata.values():
        for name, fraction in fractions.items():
            left = [patient for patient in stratum if patient not in drawn]
            count = min(_share(fraction, len(stratum)), len(left))
            start = generator.uniform()
            drawn |= {left[int((start + i) * len(left) / count)]: name for i in range(count)}
    return drawn


def _share(fraction: float, size: int) -> int:
    """At least one of three: a part without one of the classes cannot be evaluated."""
    return max(1 if size >= 3 else 0, round(fraction * size))

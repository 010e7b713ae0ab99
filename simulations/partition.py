"""Who holds which patient: a study's records divided among simulated hospitals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from client.data.study import Record, patient_labels
from common.errors import DataError, UsageError

# Keeps the draw of the partition apart from other draws that start from the same seed.
_PURPOSE = 2


def partition(
    records: Sequence[Record], *, num_sites: int, seed: int
) -> dict[str, tuple[Record, ...]]:
    """Gives every patient, whole, to one site.

    Where every record names its hospital and there are ``num_sites`` of them, each hospital keeps
    its own. Otherwise the records are pooled and dealt to ``site-1`` ... ``site-n``: sizes differ
    by one patient at most, and so does the number of positive patients. The result depends on the
    set of records and the seed, not on the order of the records.

    *Guarantees*: every record is at exactly one site, and no patient is at two.

    Args:
        records: The records to divide (those of the training part).
        num_sites: Number of hospitals.
        seed: A number from 0.

    Returns:
        The records of each site in row order, sites in the order of their names or numbers.

    Raises:
        UsageError: There are more sites than patients, or a site has images of one class only.
        DataError: A patient is at two hospitals of the study.
    """
    labels = patient_labels(records)
    if num_sites < 1 or num_sites > len(labels):
        raise UsageError(
            f"federation.num_sites={num_sites}: must be 1 to {len(labels)}, the number of "
            "training patients; each site needs a patient of its own"
        )
    natural = _natural_sites(records)
    if len(natural) == num_sites:
        home = _natural_homes(records)
        names = natural
    else:
        home = _dealt_homes(labels, num_sites, seed)
        names = [_pooled_name(index) for index in range(num_sites)]
    sites: dict[str, list[Record]] = {name: [] for name in names}
    for record in sorted(records, key=lambda record: record.row):
        sites[home[record.patient]].append(record)
    for name, members in sites.items():
        _check_classes(name, members, num_sites)
    return {name: tuple(members) for name, members in sites.items()}


def _pooled_name(index: int) -> str:
    return f"site-{index + 1}"


def _natural_sites(records: Sequence[Record]) -> list[str]:
    """The hospitals that the study names, or none if a record lacks one."""
    names = [record.site for record in records if record.site is not None]
    return sorted(set(names)) if len(names) == len(records) else []


def _natural_homes(records: Sequence[Record]) -> dict[str, str]:
    """Maps each patient to the hospital, refusing patients with two.

    Two ledgers would each count such a patient once, so the larger of their epsilons would be no
    bound for the federation.
    """
    hospitals: dict[str, set[str]] = {}
    for record in records:
        hospitals.setdefault(record.patient, set()).add(record.site or "")
    torn = sum(len(names) > 1 for names in hospitals.values())
    if torn:
        raise DataError(
            f"data.columns.site: {torn} of {len(hospitals)} patients are at two hospitals; mend "
            "the table or pool the study with data.columns.site=null"
        )
    return {patient: names.pop() for patient, names in hospitals.items()}


def _dealt_homes(labels: dict[str, int], num_sites: int, seed: int) -> dict[str, str]:
    """Deals shuffled patients of one class after the other, like cards."""
    generator = np.random.default_rng([seed, _PURPOSE])
    deck: list[str] = []
    for label in sorted(set(labels.values()), reverse=True):
        stratum = sorted(patient for patient in labels if labels[patient] == label)
        deck += [stratum[index] for index in generator.permutation(len(stratum))]
    return {patient: _pooled_name(place % num_sites) for place, patient in enumerate(deck)}


def _check_classes(name: str, members: list[Record], num_sites: int) -> None:
    for label, finding in ((1, "positive (malignant)"), (0, "negative (benign)")):
        if not any(record.label == label for record in members):
            raise UsageError(
                f"federation.num_sites={num_sites}: {name} has no {finding} case among its "
                f"{len(members)} images; use fewer sites, or leave {name} out of the study"
            )

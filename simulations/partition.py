"""Who holds which patient: a study's records divided among simulated hospitals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from client.data.study import Record, patient_labels
from common.config import PartitionConfig, PartitionKind
from common.errors import DataError, UsageError

# Keeps the draw of the partition apart from other draws that start from the same seed.
_PURPOSE = 2

_SITE_COLUMN = "site"


def partition(
    records: Sequence[Record],
    how: PartitionConfig | None = None,
    *,
    num_sites: int,
    seed: int,
) -> dict[str, tuple[Record, ...]]:
    """Gives every patient, whole, to one site.

    - ``natural``: each hospital of the study keeps its own. If fewer sites are asked for, the
      smallest hospitals become one site whose name joins theirs.
    - ``equal``: patients are dealt like cards to ``site-1`` ... ``site-n``: sizes differ by one
      patient at most, and so does the number of patients of any label.
    - ``auto``: ``natural`` if every record names its hospital and there are ``num_sites`` of them,
      else ``equal``.
    - ``size_skew``: each site is ``ratio`` times as large as the next, with the same labels.
    - ``label_skew``: each label is spread over the sites by shares from a symmetric Dirichlet
      distribution with concentration ``alpha`` (Hsu, Qi, Brown 2019,
      https://arxiv.org/abs/1909.06335), here over patients.
    - ``feature_skew``: the same with the values of a group in place of labels.

    For the skewed kinds every site first gets one patient of each label that has enough of them, so
    that each site can train; the rest follows the shares. The result depends on the set of records
    and the seed, not on the order of the records.

    *Guarantees*: every record is at exactly one site, and no patient is at two.

    Args:
        records: The records to divide (those of the training part).
        how: The kind of partition; ``None`` is ``auto``.
        num_sites: Number of hospitals.
        seed: A number from 0.

    Returns:
        The records of each site in row order, sites in the order of their names or numbers.

    Raises:
        UsageError: There are more sites than patients or hospitals, the study does not know what to
            go by, or a site has images of one class only.
        DataError: A patient is at two hospitals of the study.
    """
    how = how or PartitionConfig()
    labels = patient_labels(records)
    if num_sites < 1 or num_sites > len(labels):
        raise UsageError(
            f"federation.num_sites={num_sites}: must be 1 to {len(labels)}, the number of "
            "training patients; each site needs a patient of its own"
        )
    home = _homes(records, how, labels, num_sites, np.random.default_rng([seed, _PURPOSE]))
    names = sorted(
        set(home.values()), key=lambda name: (len(name) if _is_pooled(name) else 0, name)
    )
    sites: dict[str, list[Record]] = {name: [] for name in names}
    for record in sorted(records, key=lambda record: record.row):
        sites[home[record.patient]].append(record)
    _check_classes(sites, num_sites)
    return {name: tuple(members) for name, members in sites.items()}


def _homes(
    records: Sequence[Record],
    how: PartitionConfig,
    labels: Mapping[str, int],
    num_sites: int,
    generator: np.random.Generator,
) -> dict[str, str]:
    """Maps each patient to the name of a site."""

    def dirichlet() -> npt.NDArray[np.float64]:
        return generator.dirichlet(np.full(num_sites, how.alpha))

    match how.kind:
        case PartitionKind.natural:
            return _joined(_natural_homes(records, how.by or _SITE_COLUMN), num_sites)
        case PartitionKind.auto:
            by = how.by or _SITE_COLUMN
            hospitals = {_value(record, by) for record in records}
            if None not in hospitals and len(hospitals) == num_sites:
                return _natural_homes(records, by)
            return _dealt_homes(labels, num_sites, generator)
        case PartitionKind.equal:
            return _dealt_homes(labels, num_sites, generator)
        case PartitionKind.size_skew:
            shares = how.ratio ** -np.arange(num_sites, dtype=np.float64)
            fixed = shares / shares.sum()
            return _shared_homes(labels, labels, lambda: fixed, num_sites, generator)
        case PartitionKind.label_skew:
            return _shared_homes(labels, labels, dirichlet, num_sites, generator)
        case PartitionKind.feature_skew:
            values = _features(records, how.by or _SITE_COLUMN)
            return _shared_homes(labels, values, dirichlet, num_sites, generator)


def _pooled_name(index: int) -> str:
    return f"site-{index + 1}"


def _is_pooled(name: str) -> bool:
    """Whether ``name`` is a number in words: ``site-2`` stands before ``site-10``."""
    return name.startswith("site-") and name.removeprefix("site-").isdecimal()


def _value(record: Record, by: str) -> str | None:
    return record.site if by == _SITE_COLUMN else record.groups.get(by)


def _require_values(records: Sequence[Record], by: str) -> None:
    without = sum(_value(record, by) is None for record in records)
    if without:
        groups = sorted({name for record in records for name in record.groups})
        known = ", ".join(groups) or "none"
        setting = "data.columns.site" if by == _SITE_COLUMN else f"partition.by={by}"
        raise UsageError(
            f"{setting}: {without} of {len(records)} rows have no such value; the study's groups "
            f"are: {known}"
        )


def _natural_homes(records: Sequence[Record], by: str) -> dict[str, str]:
    """Maps each patient to the hospital, refusing patients with two.

    Two ledgers would each count such a patient once, so the larger of their epsilons would be no
    bound for the federation.
    """
    _require_values(records, by)
    hospitals: dict[str, set[str]] = {}
    for record in records:
        hospitals.setdefault(record.patient, set()).add(_value(record, by) or "")
    torn = sum(len(names) > 1 for names in hospitals.values())
    if torn:
        setting = "data.columns.site" if by == _SITE_COLUMN else f"partition.by={by}"
        raise DataError(
            f"{setting}: {torn} of {len(hospitals)} patients are at two hospitals; mend "
            "the table or pool the study with partition=equal"
        )
    return {patient: names.pop() for patient, names in hospitals.items()}


def _joined(home: dict[str, str], num_sites: int) -> dict[str, str]:
    """The largest ``num_sites - 1`` hospitals as they are, all others as one site."""
    sizes: dict[str, int] = {}
    for hospital in home.values():
        sizes[hospital] = sizes.get(hospital, 0) + 1
    if num_sites > len(sizes):
        raise UsageError(
            f"federation.num_sites={num_sites}: the study has {len(sizes)} hospitals; ask for at "
            "most as many, or divide them with partition=equal"
        )
    ordered = sorted(sizes, key=lambda hospital: (-sizes[hospital], hospital))
    rest = ordered[num_sites - 1 :]
    together = "+".join(sorted(rest))
    return {patient: together if own in rest else own for patient, own in home.items()}


def _dealt_homes(
    labels: Mapping[str, int], num_sites: int, generator: np.random.Generator
) -> dict[str, str]:
    """Deals shuffled patients of one label after the other, like cards."""
    deck: list[str] = []
    for label in sorted(set(labels.values()), reverse=True):
        deck += _shuffled([patient for patient in labels if labels[patient] == label], generator)
    return {patient: _pooled_name(place % num_sites) for place, patient in enumerate(deck)}


def _shared_homes(
    labels: Mapping[str, int],
    strata: Mapping[str, int] | Mapping[str, str],
    shares: Callable[[], npt.NDArray[np.float64]],
    num_sites: int,
    generator: np.random.Generator,
) -> dict[str, str]:
    """One patient of each label for every site, then each stratum by shares of its own."""
    home: dict[str, str] = {}
    for label in sorted(set(labels.values())):
        first = _shuffled([patient for patient in labels if labels[patient] == label], generator)
        if len(first) >= num_sites:
            home |= {first[site]: _pooled_name(site) for site in range(num_sites)}
    left = [patient for patient in labels if patient not in home]
    for stratum in sorted({strata[patient] for patient in left}, key=str):
        members = _shuffled([patient for patient in left if strata[patient] == stratum], generator)
        bounds = np.rint(np.cumsum(shares()) * len(members)).astype(int)
        for place, patient in enumerate(members):
            site = int(np.searchsorted(bounds, place, side="right"))
            home[patient] = _pooled_name(min(site, num_sites - 1))
    return home


def _features(records: Sequence[Record], by: str) -> dict[str, str]:
    """Maps each patient to the value in the first of its rows."""
    _require_values(records, by)
    values: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record.row):
        values.setdefault(record.patient, _value(record, by) or "")
    return values


def _shuffled(patients: list[str], generator: np.random.Generator) -> list[str]:
    return [patients[index] for index in generator.permutation(len(patients))]


def _check_classes(sites: Mapping[str, Sequence[Record]], num_sites: int) -> None:
    """Refuses a site that cannot learn to tell classes apart; findings side by side may lack."""
    if any(len(record.labels) != 1 for members in sites.values() for record in members):
        return
    found = {name: {record.labels[0] for record in members} for name, members in sites.items()}
    if max(max(labels) for labels in found.values()) > 1:
        for name, labels in found.items():
            if len(labels) < 2:
                raise _too_few(name, "second class", len(sites[name]), num_sites)
        return
    for label, finding in ((1, "positive case"), (0, "negative case")):
        for name, labels in found.items():
            if label not in labels:
                raise _too_few(name, finding, len(sites[name]), num_sites)


def _too_few(name: str, finding: str, num_images: int, num_sites: int) -> UsageError:
    return UsageError(
        f"federation.num_sites={num_sites}: {name} has no {finding} among its {num_images} "
        f"images; use fewer sites, another partition, or leave {name} out of the study"
    )

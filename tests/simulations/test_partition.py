from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.study import Record, patient_labels
from common.errors import DataError, UsageError
from simulations.partition import partition


def _record(row: int, patient: str, label: int, site: str | None = None) -> Record:
    path = Path(f"{row}.png")
    return Record(row=row, path=path, patient=patient, label=label, split="train", site=site)


@st.composite
def studies(draw: st.DrawFn) -> tuple[list[Record], int]:
    """Records with at least one positive and one negative patient for each site."""
    num_sites = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, 1), max_size=30))
    labels = [0, 1] * num_sites + extra
    counts = draw(st.lists(st.integers(1, 4), min_size=len(labels), max_size=len(labels)))
    patients = [
        (f"p{number}", label)
        for number, (label, count) in enumerate(zip(labels, counts, strict=True))
        for _ in range(count)
    ]
    order = draw(st.permutations(patients))
    records = [_record(row, patient, label) for row, (patient, label) in enumerate(order, start=1)]
    return records, num_sites


@given(studies(), st.integers(0, 2**32))
def test_every_record_is_at_one_site_and_no_patient_at_two(
    study: tuple[list[Record], int], seed: int
) -> None:
    records, num_sites = study
    sites = partition(records, num_sites=num_sites, seed=seed)
    assert list(sites) == [f"site-{number}" for number in range(1, num_sites + 1)]
    rows = [record.row for members in sites.values() for record in members]
    assert sorted(rows) == sorted(record.row for record in records)
    homes: dict[str, set[str]] = {}
    for name, members in sites.items():
        for record in members:
            homes.setdefault(record.patient, set()).add(name)
    assert all(len(names) == 1 for names in homes.values())


@given(studies(), st.integers(0, 2**32))
def test_pooled_sites_differ_by_one_patient_and_one_positive_at_most(
    study: tuple[list[Record], int], seed: int
) -> None:
    records, num_sites = study
    sites = partition(records, num_sites=num_sites, seed=seed)
    labels = [patient_labels(members) for members in sites.values()]
    for counts in ([len(site) for site in labels], [sum(site.values()) for site in labels]):
        assert max(counts) - min(counts) <= 1


@given(studies(), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_partition_depends_on_the_seed_and_not_on_the_order(
    study: tuple[list[Record], int], seed: int, random: Random
) -> None:
    records, num_sites = study
    shuffled = list(records)
    random.shuffle(shuffled)
    assert partition(shuffled, num_sites=num_sites, seed=seed) == partition(
        records, num_sites=num_sites, seed=seed
    )


def test_another_seed_gives_another_partition() -> None:
    records = [_record(number, f"p{number}", number % 2) for number in range(1, 41)]
    first, second = (partition(records, num_sites=2, seed=seed) for seed in (1, 2))
    assert first != second


def test_natural_sites_keep_their_patients_and_names() -> None:
    records = [_record(row, f"p{row}", row % 2, site="AB"[row // 4 % 2]) for row in range(1, 33)]
    sites = partition(records, num_sites=2, seed=0)
    assert {
        name: Counter(record.site for record in members) for name, members in sites.items()
    } == {
        "A": Counter({"A": 16}),
        "B": Counter({"B": 16}),
    }


def test_natural_sites_are_pooled_when_another_number_is_asked_for() -> None:
    records = [_record(row, f"p{row}", row % 2, site="AB"[row // 4 % 2]) for row in range(1, 33)]
    assert list(partition(records, num_sites=4, seed=0)) == ["site-1", "site-2", "site-3", "site-4"]


def test_records_without_a_site_are_pooled() -> None:
    records = [_record(row, f"p{row}", row % 2, site="AB"[row // 4 % 2]) for row in range(1, 33)]
    records[5] = replace(records[5], site=None)
    assert list(partition(records, num_sites=2, seed=0)) == ["site-1", "site-2"]


def test_a_patient_at_two_hospitals_is_refused_without_being_named() -> None:
    records = [
        _record(row, f"secret{row}", row % 2, site="AB"[row // 4 % 2]) for row in range(1, 33)
    ]
    records[0] = replace(records[0], patient=records[20].patient, site="A")
    records[20] = replace(records[20], site="B")
    with pytest.raises(DataError, match=r"1 of 31 patients are at two hospitals") as error:
        partition(records, num_sites=2, seed=0)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("num_sites", [0, 5, 100])
def test_more_sites_than_patients_is_one_clear_line(num_sites: int) -> None:
    records = [_record(row, f"p{row % 4}", row % 2) for row in range(1, 13)]
    with pytest.raises(UsageError, match=rf"federation.num_sites={num_sites}: must be 1 to 4"):
        partition(records, num_sites=num_sites, seed=0)


@pytest.mark.parametrize(("label", "finding"), [(1, "malignant"), (0, "benign")])
def test_a_site_without_one_of_the_classes_is_named(label: int, finding: str) -> None:
    records = [_record(row, f"p{row}", label if row == 1 else 1 - label) for row in range(1, 11)]
    with pytest.raises(UsageError, match=rf"site-\d has no \w+ \({finding}\) case.*fewer sites"):
        partition(records, num_sites=2, seed=0)


def test_a_natural_site_without_positives_is_named() -> None:
    records = [_record(row, f"p{row}", int(row > 6), site="AB"[row > 6]) for row in range(1, 13)]
    with pytest.raises(
        UsageError, match=r"A has no positive \(malignant\) case among its 6 images"
    ):
        partition(records, num_sites=2, seed=0)

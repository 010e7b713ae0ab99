from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.study import Record, patient_labels
from common.config import PartitionConfig, PartitionKind
from common.errors import DataError, UsageError
from simulations.partition import partition


def _record(row: int, patient: str, label: int, site: str | None = None) -> Record:
    path = Path(f"{row}.png")
    return Record(row=row, path=path, patient=patient, labels=(label,), split="train", site=site)


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


@pytest.mark.parametrize(("label", "finding"), [(1, "positive"), (0, "negative")])
def test_a_site_without_one_of_the_classes_is_named(label: int, finding: str) -> None:
    records = [_record(row, f"p{row}", label if row == 1 else 1 - label) for row in range(1, 11)]
    with pytest.raises(UsageError, match=rf"site-\d has no {finding} case.*fewer sites"):
        partition(records, num_sites=2, seed=0)


def test_a_natural_site_without_positives_is_named() -> None:
    records = [_record(row, f"p{row}", int(row > 6), site="AB"[row > 6]) for row in range(1, 13)]
    with pytest.raises(UsageError, match=r"A has no positive case among its 6 images"):
        partition(records, num_sites=2, seed=0)


KINDS = [
    PartitionConfig(kind=PartitionKind.equal),
    PartitionConfig(kind=PartitionKind.size_skew),
    PartitionConfig(kind=PartitionKind.label_skew, alpha=0.3),
    PartitionConfig(kind=PartitionKind.feature_skew, by="sex", alpha=0.3),
]


def _in_group(record: Record, value: str) -> Record:
    return replace(record, groups={"sex": value})


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.kind.value)
@settings(deadline=None)
@given(studies(), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_every_kind_keeps_patients_whole_and_follows_the_seed(
    how: PartitionConfig, study: tuple[list[Record], int], seed: int, random: Random
) -> None:
    plain, num_sites = study
    records = [_in_group(record, "FM"[len(record.patient) % 2]) for record in plain]
    sites = partition(records, how, num_sites=num_sites, seed=seed)
    assert list(sites) == [f"site-{number}" for number in range(1, num_sites + 1)]
    rows = [record.row for members in sites.values() for record in members]
    assert sorted(rows) == sorted(record.row for record in records)
    at = [{record.patient for record in members} for members in sites.values()]
    assert sum(map(len, at)) == len(set.union(*at))
    shuffled = list(records)
    random.shuffle(shuffled)
    assert partition(shuffled, how, num_sites=num_sites, seed=seed) == sites


def _patients(count: int, num_labels: int = 2) -> list[Record]:
    return [
        _in_group(_record(row, f"p{row}", row % num_labels), "FM"[row // num_labels % 2])
        for row in range(1, count + 1)
    ]


def test_ten_sites_stand_in_the_order_of_their_numbers() -> None:
    how = PartitionConfig(kind=PartitionKind.equal)
    names = list(partition(_patients(40), how, num_sites=11, seed=0))
    assert names == [f"site-{number}" for number in range(1, 12)]


def test_equal_ignores_the_hospitals_of_the_study() -> None:
    records = [_record(row, f"p{row}", row % 2, site="AB"[row // 4 % 2]) for row in range(1, 33)]
    how = PartitionConfig(kind=PartitionKind.equal)
    assert list(partition(records, how, num_sites=2, seed=0)) == ["site-1", "site-2"]


def test_size_skew_halves_from_site_to_site_and_keeps_the_labels() -> None:
    how = PartitionConfig(kind=PartitionKind.size_skew, ratio=2.0)
    sites = partition(_patients(700), how, num_sites=3, seed=0)
    sizes = [len(members) for members in sites.values()]
    assert sizes == pytest.approx([400, 200, 100], abs=3)
    for members in sites.values():
        positives = sum(record.labels == (1,) for record in members)
        assert positives == pytest.approx(len(members) / 2, abs=2)


def _spread(records: list[Record], alpha: float, kind: PartitionKind) -> float:
    """Mean over sites of how far the share of one value is from its share in the study."""
    how = PartitionConfig(kind=kind, by="sex", alpha=alpha)
    far = []
    for seed in range(20):
        for members in partition(records, how, num_sites=4, seed=seed).values():
            if kind is PartitionKind.label_skew:
                share = sum(record.labels == (1,) for record in members) / len(members)
            else:
                share = sum(record.groups["sex"] == "F" for record in members) / len(members)
            far.append(abs(share - 0.5))
    return sum(far) / len(far)


@pytest.mark.parametrize("kind", [PartitionKind.label_skew, PartitionKind.feature_skew])
def test_a_smaller_alpha_skews_more(kind: PartitionKind) -> None:
    records = _patients(400)
    assert _spread(records, 1000.0, kind) < 0.05
    assert (
        _spread(records, 1000.0, kind) < _spread(records, 1.0, kind) < _spread(records, 0.1, kind)
    )
    assert _spread(records, 0.1, kind) > 0.25


def test_label_skew_follows_dirichlet_shares() -> None:
    # The share of a label at one of n sites has variance (1/n)(1 - 1/n)/(n alpha + 1).
    records, alpha, num_sites = _patients(2000), 1.0, 4
    how = PartitionConfig(kind=PartitionKind.label_skew, alpha=alpha)
    shares = [
        sum(record.labels == (label,) for record in members) / 1000
        for seed in range(100)
        for members in partition(records, how, num_sites=num_sites, seed=seed).values()
        for label in (0, 1)
    ]
    mean = 1 / num_sites
    variance = sum((share - mean) ** 2 for share in shares) / len(shares)
    assert variance == pytest.approx(mean * (1 - mean) / (num_sites * alpha + 1), rel=0.2)


def test_natural_goes_by_a_group_and_joins_the_smallest() -> None:
    makers = ["GE"] * 20 + ["Siemens"] * 10 + ["Philips"] * 6 + ["Toshiba"] * 4
    records = [
        replace(_record(row, f"p{row}", row % 2), groups={"manufacturer": maker})
        for row, maker in enumerate(makers, start=1)
    ]
    how = PartitionConfig(kind=PartitionKind.natural, by="manufacturer")
    four = partition(records, how, num_sites=4, seed=0)
    assert {name: len(members) for name, members in four.items()} == {
        "GE": 20,
        "Philips": 6,
        "Siemens": 10,
        "Toshiba": 4,
    }
    three = partition(records, how, num_sites=3, seed=0)
    assert {name: len(members) for name, members in three.items()} == {
        "GE": 20,
        "Philips+Toshiba": 10,
        "Siemens": 10,
    }
    with pytest.raises(UsageError, match=r"federation\.num_sites=5: the study has 4 hospitals"):
        partition(records, how, num_sites=5, seed=0)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (PartitionConfig(kind=PartitionKind.natural), r"data\.columns\.site: 8 of 8 rows"),
        (
            PartitionConfig(kind=PartitionKind.natural, by="maker"),
            r"partition\.by=maker: 8 of 8 rows have no such value.* groups are: sex",
        ),
        (
            PartitionConfig(kind=PartitionKind.feature_skew, by="age"),
            r"partition\.by=age: 8 of 8 rows.* groups are: sex",
        ),
    ],
)
def test_what_the_study_does_not_know_is_one_clear_line(how: PartitionConfig, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        partition(_patients(8), how, num_sites=2, seed=0)


def test_sites_of_several_classes_need_two_of_them() -> None:
    records = [
        _record(row, f"p{row}", row % 3, site="A" if row % 3 == 2 else "B") for row in range(1, 19)
    ]
    with pytest.raises(UsageError, match="A has no second class among its 6 images"):
        partition(records, num_sites=2, seed=0)
    assert len(partition(_patients(18, num_labels=3), num_sites=3, seed=0)) == 3


def test_findings_side_by_side_may_lack_at_a_site() -> None:
    records = [
        replace(_record(row, f"p{row}", 0), labels=(int(row == 1), 0, int(row % 2)))
        for row in range(1, 13)
    ]
    for how in KINDS[:3]:
        assert len(partition(records, how, num_sites=3, seed=0)) == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha": 0.0}, "partition.alpha=0"),
        ({"ratio": 0.5}, "partition.ratio=0.5"),
        ({"kind": PartitionKind.feature_skew}, "partition.by is not set"),
    ],
)
def test_strange_settings_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PartitionConfig(**values)  # pyright: ignore[reportArgumentType]

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.split import Split, fold_patients, split_patients
from client.data.study import Record, patient_labels
from common.errors import DataError, UsageError


def _records(patients: list[tuple[int, int]], splits: list[str] | None = None) -> list[Record]:
    """Records of patients given as (images, label); the last image carries the label."""
    records: list[Record] = []
    for number, (count, label) in enumerate(patients):
        for image in range(count):
            record = Record(
                row=len(records) + 1,
                path=Path("x"),
                patient=f"secret{number}",
                labels=(label if image == count - 1 else 0,),
                split=splits[number] if splits else None,
            )
            records.append(record)
    return records


def _split(records: list[Record], seed: int = 3) -> Split:
    return split_patients(records, val_fraction=0.1, test_fraction=0.2, seed=seed)


def _patients(part: tuple[Record, ...]) -> set[str]:
    return {record.patient for record in part}


patients_of_both_classes = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 1)), min_size=3, max_size=60
).map(lambda extra: [(1, 0), (2, 1)] * 4 + extra)


@given(patients_of_both_classes, st.integers(0, 2**32))
def test_parts_are_everything_and_share_no_patient(
    patients: list[tuple[int, int]], seed: int
) -> None:
    records = _records(patients)
    split = _split(records, seed)
    parts = (split.train, split.val, split.test)
    assert sorted(r.row for part in parts for r in part) == [r.row for r in records]
    assert sum(len(_patients(part)) for part in parts) == len(patients)


@given(patients_of_both_classes, st.integers(0, 2**32))
def test_parts_are_stratified_by_patient_label(patients: list[tuple[int, int]], seed: int) -> None:
    records = _records(patients)
    split = _split(records, seed)
    for label in (0, 1):
        stratum = {name for name, value in patient_labels(records).items() if value == label}
        for part, fraction in ((split.val, 0.1), (split.test, 0.2)):
            share = len(_patients(part) & stratum)
            assert abs(share - fraction * len(stratum)) <= 1
            assert share >= 1


@given(patients_of_both_classes, st.integers(0, 2**32), st.integers(0, 100))
def test_split_does_not_depend_on_the_order(
    patients: list[tuple[int, int]], seed: int, shuffle: int
) -> None:
    records = _records(patients)
    shuffled = list(records)
    Random(shuffle).shuffle(shuffled)
    assert _split(shuffled, seed) == _split(records, seed)


def test_another_seed_gives_another_split() -> None:
    records = _records([(1, number % 2) for number in range(60)])
    assert _split(records, 1) != _split(records, 2)


def test_official_split_is_respected() -> None:
    splits = ["train", "val", "test", "train", "test", "train"]
    split = _split(_records([(2, 1)] * 6, splits))
    assert _patients(split.train) == {"secret0", "secret3", "secret5"}
    assert _patients(split.val) == {"secret1"}
    assert _patients(split.test) == {"secret2", "secret4"}


def test_validation_is_drawn_from_train_where_the_official_split_has_none() -> None:
    splits = ["test" if number < 10 else "train" for number in range(50)]
    split = _split(_records([(2, number % 2) for number in range(50)], splits))
    assert _patients(split.test) == {f"secret{number}" for number in range(10)}
    assert len(_patients(split.val)) == 4
    assert len(_patients(split.train)) == 36


def test_a_patient_on_two_sides_is_counted_and_not_named() -> None:
    records = _records([(1, number % 2) for number in range(20)], ["train", "test"] * 10)
    torn = [
        Record(row=99, path=Path("x"), patient=records[0].patient, labels=(0,), split="test"),
        Record(row=98, path=Path("x"), patient=records[1].patient, labels=(0,), split="val"),
    ]
    with pytest.raises(DataError, match="2 of 20 patients are in two parts") as error:
        _split(records + torn)
    assert "secret" not in str(error.value)


def test_rows_without_an_official_split_are_counted() -> None:
    records = _records([(1, 0), (1, 1), (1, 1)], ["train", "test", "val"])
    bare = Record(row=9, path=Path("x"), patient="other", labels=(0,))
    with pytest.raises(DataError, match="1 of 4 rows have no official split"):
        _split([*records, bare])


@pytest.mark.parametrize("splits", [None, ["test", "val"]])
def test_an_empty_part_is_refused(splits: list[str] | None) -> None:
    with pytest.raises(DataError, match="part is empty"):
        _split(_records([(1, 0), (1, 1)], splits))


@given(patients_of_both_classes, st.integers(0, 2**32))
def test_the_split_does_not_depend_on_the_key_of_the_hashes(
    patients: list[tuple[int, int]], seed: int
) -> None:
    records = _records(patients)
    other = [replace(r, patient=r.patient[::-1] + "under another key") for r in records]

    def rows(split: Split) -> list[list[int]]:
        return [[record.row for record in part] for part in (split.train, split.val, split.test)]

    assert rows(_split(other, seed)) == rows(_split(records, seed))


def _grouped(count: int) -> list[Record]:
    """Patients with one image each, of both labels, sexes and four ages, none tied to another."""
    generator = Random(5)
    return [
        Record(
            row=row,
            path=Path("x"),
            patient=f"p{row}",
            labels=(generator.randrange(2),),
            groups={"sex": generator.choice("FM"), "age": generator.choice("1234")},
        )
        for row in range(1, count + 1)
    ]


@given(st.integers(0, 2**32))
def test_groups_are_drawn_in_proportion_within_each_label(seed: int) -> None:
    """By chance alone 20 % of 200 patients of a group would vary by five or six."""
    records = _grouped(800)
    split = split_patients(records, val_fraction=0.1, test_fraction=0.2, seed=seed)

    def counts(part: tuple[Record, ...] | list[Record]) -> Counter[tuple[int, str]]:
        return Counter((record.labels[0], record.groups["age"]) for record in part)

    whole = counts(records)
    for part, fraction in ((split.val, 0.1), (split.test, 0.2)):
        found = counts(part)
        assert all(abs(found[key] - fraction * number) <= 3 for key, number in whole.items())


def test_labels_and_groups_do_not_shrink_the_training_part() -> None:
    """Strata of one patient each must not all give theirs away."""
    records = [
        replace(record, groups={"age": str(record.row)})
        for record in _records([(1, 0), (1, 1)] * 50)
    ]
    split = _split(records)
    assert (len(split.val), len(split.test)) == (10, 20)


@given(patients_of_both_classes, st.integers(2, 6), st.integers(0, 2**32))
def test_folds_leave_every_patient_out_once(
    patients: list[tuple[int, int]], num_folds: int, seed: int
) -> None:
    records = _records(patients)
    folds = fold_patients(records, num_folds=num_folds, seed=seed)
    assert len(folds) == num_folds
    held_out = [record.row for fold in folds for record in fold.held_out]
    assert sorted(held_out) == [record.row for record in records]
    for fold in folds:
        assert not _patients(fold.train) & _patients(fold.held_out)
        assert len(fold.train) + len(fold.held_out) == len(records)
    labels = patient_labels(records)
    for label in (0, 1):
        sizes = [sum(labels[p] == label for p in _patients(fold.held_out)) for fold in folds]
        assert max(sizes) - min(sizes) <= 1
    shuffled = list(records)
    Random(seed).shuffle(shuffled)
    assert fold_patients(shuffled, num_folds=num_folds, seed=seed) == folds


@pytest.mark.parametrize("num_folds", [0, 1, 7])
def test_a_strange_number_of_folds(num_folds: int) -> None:
    with pytest.raises(UsageError, match=rf"num_folds={num_folds}: must be 2 to 6"):
        fold_patients(_records([(1, 0)] * 6), num_folds=num_folds, seed=0)

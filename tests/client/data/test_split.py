from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.split import Split, split_patients
from client.data.study import Record, patient_labels
from common.errors import DataError


def _records(patients: list[tuple[int, int]], splits: list[str] | None = None) -> list[Record]:
    """Records of patients given as (images, label); the last image carries the label."""
    records: list[Record] = []
    for number, (count, label) in enumerate(patients):
        for image in range(count):
            record = Record(
                row=len(records) + 1,
                path=Path("x"),
                patient=f"secret{number}",
                label=label if image == count - 1 else 0,
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
        Record(row=99, path=Path("x"), patient=records[0].patient, label=0, split="test"),
        Record(row=98, path=Path("x"), patient=records[1].patient, label=0, split="val"),
    ]
    with pytest.raises(DataError, match="2 of 20 patients are in two parts") as error:
        _split(records + torn)
    assert "secret" not in str(error.value)


def test_rows_without_an_official_split_are_counted() -> None:
    records = _records([(1, 0), (1, 1), (1, 1)], ["train", "test", "val"])
    bare = Record(row=9, path=Path("x"), patient="other", label=0)
    with pytest.raises(DataError, match="1 of 4 rows have no official split"):
        _split([*records, bare])


@pytest.mark.parametrize("splits", [None, ["test", "val"]])
def test_an_empty_part_is_refused(splits: list[str] | None) -> None:
    with pytest.raises(DataError, match="part is empty"):
        _split(_records([(1, 0), (1, 1)], splits))

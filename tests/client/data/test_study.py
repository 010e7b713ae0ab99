from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.data.study import Record, build, patient_labels
from common.config import ColumnsConfig, DataConfig, PhantomConfig, StudyKind
from common.errors import DataError
from simulations.partition import partition

_SMALL = PhantomConfig(num_train_per_site=6, num_val=4, num_test=5, size=32)


def _record(row: int, patient: str, label: int) -> Record:
    return Record(row=row, path=Path("secret.png"), patient=patient, labels=(label,))


def test_record_shows_its_row_and_neither_patient_nor_file() -> None:
    assert repr(_record(3, "secret", 1)) == "Record(row=3, labels=(1,), split=None, site=None)"


def test_a_patient_is_positive_if_any_image_is() -> None:
    records = [_record(1, "a", 0), _record(2, "a", 1), _record(3, "a", 0), _record(4, "b", 0)]
    assert patient_labels(records) == {"a": 1, "b": 0}


def test_patients_stand_in_the_order_of_their_first_rows() -> None:
    records = [_record(3, "a", 1), _record(1, "z", 0), _record(2, "m", 0), _record(4, "z", 1)]
    assert list(patient_labels(records).items()) == [("z", 1), ("m", 0), ("a", 1)]


def test_the_largest_class_is_the_patients() -> None:
    assert patient_labels([_record(1, "a", 2), _record(2, "a", 1)]) == {"a": 2}


def test_of_several_findings_the_rarest_is_the_patients() -> None:
    rows = {
        "none": (0, 0, -1),
        "common": (1, 0, 0),
        "both": (1, 1, 0),
        "other": (1, 0, -1),
        "another": (1, -1, 0),
        "rare": (0, 1, 0),
        "rarest": (1, 1, 1),
    }
    records = [
        Record(row=row, path=Path("x"), patient=patient, labels=labels)
        for row, (patient, labels) in enumerate(rows.items(), start=1)
    ]
    records.append(Record(row=9, path=Path("x"), patient="none", labels=(0, 1, 0)))
    assert patient_labels(records) == {
        "none": 2,
        "common": 1,
        "both": 2,
        "other": 1,
        "another": 1,
        "rare": 2,
        "rarest": 3,
    }
    assert patient_labels([replace(records[0], labels=(0, -1, -1))]) == {"none": 0}


def test_records_can_be_members_of_sets() -> None:
    record = replace(_record(1, "a", 0), groups={"sex": "F"})
    assert {record, replace(record)} == {record}
    assert "sex" not in repr(record)


def test_build_opens_phantoms_and_partitions_by_hospital(tmp_path: Path) -> None:
    config = DataConfig(phantom=_SMALL)
    study = build(config, num_sites=3, phantom_dir=tmp_path, secret=bytes(32))
    assert study.name == "phantom"
    train = [record for record in study.records if record.split == "train"]
    sites = partition(train, num_sites=3, seed=0)
    assert {name: len(patient_labels(members)) for name, members in sites.items()} == {
        f"hospital-{number}": 6 for number in (1, 2, 3)
    }
    build(config, num_sites=2, phantom_dir=tmp_path, secret=bytes(32))
    assert len(list(tmp_path.iterdir())) == 2


def test_build_opens_a_table(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.eye(4))
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "patient", "label"], ["one.npy", "a", "1"]])
    config = DataConfig(kind=StudyKind.table, name="eyes", root=tmp_path)
    study = build(config, num_sites=1, phantom_dir=tmp_path / "unused", secret=bytes(32))
    assert study.name == "eyes"
    assert np.array_equal(study.read(study.records[0]), np.eye(4))
    assert not (tmp_path / "unused").exists()


def test_build_passes_on_what_is_wrong_with_the_table(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("a,b\n1,2\n")
    config = DataConfig(
        kind=StudyKind.table, root=tmp_path, columns=ColumnsConfig(image="a", patient="b")
    )
    with pytest.raises(DataError, match=r"data.columns.label=label: .* it has: a, b"):
        build(config, num_sites=1, phantom_dir=tmp_path, secret=bytes(32))

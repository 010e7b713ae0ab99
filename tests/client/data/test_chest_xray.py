from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import configs
from client.data.cohort import load_cohort
from client.data.split import split_patients
from client.data.study import Study, build
from common.config import TaskKind
from common.errors import DataError

_NIH = Path(__file__).parents[4] / "shared" / "data" / "nih_cxr1000_64px"
_ROWS = [
    ["1_000.png", "Cardiomegaly", "0", "1", "058Y", "M"],
    ["1_001.png", "Cardiomegaly|Emphysema", "1", "1", "059", "M"],
    ["2_000.png", "No Finding", "0", "2", "29", "F"],
    ["3_000.png", "Hernia", "0", "3", "", "F"],
]


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    """Four images in the layout of NIH ChestX-ray14."""
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID"]
    with (tmp_path / "Data_Entry_2017.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*header, "Patient Age", "Patient Gender"], *_ROWS])
    for number, row in enumerate(_ROWS):
        folder = tmp_path / f"images_{1 + number % 2:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 50 * number).save(folder / row[0])
    return tmp_path


def _open(root: Path, *overrides: str) -> Study:
    config = configs.load(["data=nih_cxr", f"data.root={root}", *overrides])
    return build(config.data, num_sites=1, phantom_dir=root, secret=bytes(16))


def test_the_official_layout(nih: Path) -> None:
    study = _open(nih)
    assert study.task.kind is TaskKind.multilabel
    assert len(study.task.names) == 14
    found = [
        {name for name, label in zip(study.task.names, record.labels, strict=True) if label == 1}
        for record in study.records
    ]
    assert found == [{"Cardiomegaly"}, {"Cardiomegaly", "Emphysema"}, set(), {"Hernia"}]
    assert [dict(record.groups) for record in study.records] == [
        {"sex": "M", "age": "30-60"},
        {"sex": "M", "age": "30-60"},
        {"sex": "F", "age": "0-30"},
        {"sex": "F", "age": "unknown"},
    ]
    cohort = load_cohort(study, study.records, image_size=8)
    assert cohort.labels.shape == (4, 14)
    assert cohort.groups["age"].tolist() == ["30-60", "30-60", "0-30", "unknown"]
    assert cohort.num_patients == 3
    assert np.allclose(cohort.images[:, 0, 0, 0] * 255, [0, 50, 100, 150])


def test_the_official_test_list_is_the_split(nih: Path) -> None:
    assert {record.split for record in _open(nih).records} == {None}
    (nih / "test_list.txt").write_text("2_000.png\n3_000.png\n")
    assert [record.split for record in _open(nih).records] == ["train", "train", "test", "test"]


def test_a_name_in_two_folders_is_refused(nih: Path) -> None:
    Image.new("L", (8, 8)).save(nih / "images_002" / "images" / "1_000.png")
    with pytest.raises(DataError, match="row 1 names an image that is there more than once"):
        _open(nih)


def test_eight_findings_in_columns(tmp_path: Path) -> None:
    config = configs.load(["data=chest_xray", f"data.root={tmp_path}"])
    columns = config.data.labels.columns
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "sex", "age", *columns])
        writer.writerow(["a.png", "p", "F", "65", *"01", "", *"01001"])
    study = build(config.data, num_sites=1, phantom_dir=tmp_path, secret=bytes(16))
    assert study.task.names == tuple(columns)
    assert study.records[0].labels == (0, 1, -1, 0, 1, 0, 0, 1)
    assert study.records[0].groups == {"sex": "F", "age": "60-70"}


def _nih1000(tmp_path: Path) -> Study:
    if not _NIH.is_dir():
        pytest.skip("the NIH radiographs are not beside this repository")
    config = configs.load(["experiment=nih_cxr", f"data.root={_NIH}"])
    return build(config.data, num_sites=3, phantom_dir=tmp_path, secret=bytes(16))


def test_nih_has_its_published_findings_and_groups(tmp_path: Path) -> None:
    study = _nih1000(tmp_path)
    labels = np.array([record.labels for record in study.records])
    counts = dict(zip(study.task.names, labels.sum(0).tolist(), strict=True))
    assert counts["Effusion"] == 170
    assert counts["Hernia"] == 9
    assert sum(counts.values()) == 815
    assert int(labels.any(1).sum()) == 501
    assert Counter(record.groups["sex"] for record in study.records) == {"F": 509, "M": 491}
    assert len({record.patient for record in study.records}) == 264


def test_nih_is_split_by_patient_with_both_sexes_on_each_side(tmp_path: Path) -> None:
    study = _nih1000(tmp_path)
    split = split_patients(study.records, val_fraction=0.1, test_fraction=0.2, seed=1)
    parts = [{record.patient for record in part} for part in (split.train, split.val, split.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 264
    for part in (split.val, split.test):
        assert {record.groups["sex"] for record in part} == {"F", "M"}

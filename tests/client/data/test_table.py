from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from client.data.cohort import load_cohort
from client.data.patient import PatientHash
from client.data.split import split_patients
from client.data.study import Record
from client.data.table import TableStudy, read_table
from common.config import ColumnsConfig, DataConfig, LabelsConfig, StudyKind, TaskKind
from common.errors import DataError
from common.task import Task

HASHED = PatientHash(secret=bytes(32))

_CBIS = Path(__file__).parents[4] / "shared" / "data" / "cbis_ddsm_masses"
_COLUMNS = ColumnsConfig(
    image="file", patient="patient_id", label="malignant", split="split", site="hospital"
)
_HEADER = ["file", "patient_id", "malignant", "split", "hospital", "age"]
_ROWS = [
    ["a/secret-1.png", "secret-1", "1", "train", "north", "40"],
    ["a/secret-2.png", "secret-2", "0", "Validation", "south", ""],
    ["a/secret-3.png", "secret-3", "0", "TEST", "south", "41"],
]

WriteStudy = Callable[..., DataConfig]


@pytest.fixture
def write_study(tmp_path: Path) -> WriteStudy:
    """Writes images and a table; returns the configuration that reads them."""

    def write(
        rows: list[list[str]] = _ROWS,
        header: list[str] = _HEADER,
        columns: ColumnsConfig = _COLUMNS,
        encoding: str = "utf-8",
    ) -> DataConfig:
        root = tmp_path / "study"
        (root / "a").mkdir(parents=True)
        for shade, row in enumerate(_ROWS, start=1):
            Image.new("L", (8, 6), 50 * shade).save(root / row[0])
        with (root / "metadata.csv").open("w", encoding=encoding, newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return DataConfig(kind=StudyKind.table, name="own", root=root, columns=columns)

    return write


def _changed(row: int, cell: int, value: str) -> list[list[str]]:
    rows = [list(cells) for cells in _ROWS]
    rows[row][cell] = value
    return rows


def _refusal(config: DataConfig) -> str:
    with pytest.raises(DataError) as error:
        read_table(config, HASHED)
    text = str(error.value)
    assert "secret" not in text
    assert "\n" not in text
    return text


def test_table_becomes_records(write_study: WriteStudy) -> None:
    study = read_table(write_study(), HASHED)
    assert (study.name, study.task) == (
        "own",
        Task(kind=TaskKind.binary, names=("malignant",)),
    )
    first, second, third = study.records
    assert (first.row, first.labels, first.site) == (1, (1,), "north")
    assert [record.patient for record in study.records] == [HASHED(row[1]) for row in _ROWS]
    assert [record.split for record in study.records] == ["train", "val", "test"]
    assert np.array_equal(study.read(second), np.full((6, 8), 100 / 255, dtype=np.float32))
    assert (third.row, third.labels) == (3, (0,))


def test_reprs_hold_no_patient_and_no_file(write_study: WriteStudy) -> None:
    study = read_table(write_study(), HASHED)
    cohort = load_cohort(study, study.records, image_size=8)
    assert "secret" not in repr(study)
    assert "secret" not in repr(cohort)


def test_byte_order_mark_and_blank_lines_are_no_matter(write_study: WriteStudy) -> None:
    study = read_table(write_study(rows=[_ROWS[0], [], *_ROWS[1:]], encoding="utf-8-sig"), HASHED)
    assert [record.row for record in study.records] == [1, 2, 3]


def test_columns_that_are_not_configured_are_left_out(write_study: WriteStudy) -> None:
    columns = ColumnsConfig(image="file", patient="patient_id", label="malignant")
    study = read_table(write_study(columns=columns), HASHED)
    assert {(record.split, record.site) for record in study.records} == {(None, None)}


def test_missing_folder(tmp_path: Path) -> None:
    config = DataConfig(kind=StudyKind.table, root=tmp_path / "nowhere")
    assert "nowhere: is not a folder" in _refusal(config)


def test_missing_table(tmp_path: Path) -> None:
    config = DataConfig(kind=StudyKind.table, root=tmp_path)
    assert "data.table=metadata.csv: there is no such file" in _refusal(config)


def test_missing_column_lists_those_there_are(write_study: WriteStudy) -> None:
    columns = ColumnsConfig(image="file", patient="patient_id", label="cancer")
    text = _refusal(write_study(columns=columns))
    assert "data.columns.label=cancer: there is no such column" in text
    assert "file, patient_id, malignant, split, hospital, age" in text


def test_doubled_column(write_study: WriteStudy) -> None:
    header = ["file", "patient_id", "malignant", "split", "hospital", "file"]
    assert "the column is there twice" in _refusal(write_study(header=header))


@pytest.mark.parametrize(
    ("row", "cell", "value", "message"),
    [
        (1, 0, "", "row 2 has no value in column file"),
        (2, 1, " ", "row 3 has no value in column patient_id"),
        (0, 2, "", "row 1 has no value in column malignant"),
        (0, 2, "secret", "row 1 must hold 0 or 1 in column malignant"),
        (1, 2, "2", "row 2 must hold 0 or 1 in column malignant"),
        (2, 3, "secret", "row 3 must hold train, val or test in column split"),
        (2, 4, "", "row 3 has no value in column hospital"),
        (1, 0, "../../secret.png", "row 2 names an image outside data.root"),
        (1, 0, "/etc/secret", "row 2 names an image outside data.root"),
        (1, 0, "a/secret-9.png", "the image of row 2 is not in data.root"),
    ],
)
def test_bad_cells_are_named_by_row_and_column_only(
    write_study: WriteStudy, row: int, cell: int, value: str, message: str
) -> None:
    assert message in _refusal(write_study(rows=_changed(row, cell, value)))


def test_a_link_out_of_the_folder_is_refused(write_study: WriteStudy, tmp_path: Path) -> None:
    config = write_study(rows=_changed(0, 0, "a/link.png"))
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "study" / "a" / "link.png").symlink_to(tmp_path / "secret.png")
    assert "row 1 names an image outside data.root" in _refusal(config)


def test_missing_files_are_counted(write_study: WriteStudy) -> None:
    rows = [["a/secret-9.png", *row[1:]] for row in _ROWS]
    assert "the image of row 1 is not in data.root (and those of 2 more rows)" in _refusal(
        write_study(rows=rows)
    )


def test_a_short_row(write_study: WriteStudy) -> None:
    rows = [*_ROWS[:2], _ROWS[2][:4]]
    assert "row 3 has 4 cells where the header has 6" in _refusal(write_study(rows=rows))


@pytest.mark.parametrize(("rows", "message"), [([], "a header and no rows"), (None, "is empty")])
def test_empty_tables(write_study: WriteStudy, rows: list[list[str]] | None, message: str) -> None:
    config = write_study(rows=[])
    if rows is None:
        assert config.root is not None
        (config.root / "metadata.csv").write_text("")
    assert message in _refusal(config)


def test_a_table_that_is_not_text(write_study: WriteStudy) -> None:
    config = write_study()
    assert config.root is not None
    (config.root / "metadata.csv").write_bytes(b"file,patient_id\n\xff\xfe,1\n")
    assert "is not UTF-8 text" in _refusal(config)


def test_one_image_under_two_patients(write_study: WriteStudy) -> None:
    rows = _changed(2, 0, "a/../a/secret-1.png")
    text = _refusal(write_study(rows=rows))
    assert "2 rows give one image file to two patients or more (row 1 is the first)" in text


def test_an_unreadable_image_is_named_by_its_row(write_study: WriteStudy) -> None:
    config = write_study()
    assert config.root is not None
    (config.root / "a" / "secret-2.png").write_bytes(b"not an image")
    study = read_table(config, HASHED)
    with pytest.raises(DataError, match="the image of row 2 is none of PNG") as error:
        load_cohort(study, study.records, image_size=8)
    assert "secret" not in str(error.value)
    assert error.value.__suppress_context__


def test_several_findings_groups_and_sites(write_study: WriteStudy) -> None:
    rows = [
        ["a/secret-1.png", "secret-1", "mass|edema", "train", "GE Medical", "40"],
        ["a/secret-2.png", "secret-2", "none", "val", "ge", ""],
        ["a/secret-3.png", "secret-3", "edema", "test", "toshiba", "61"],
    ]
    columns = replace(
        _COLUMNS,
        groups={"age": "age", "maker": "hospital"},
        bins={"age": [0, 60]},
        site_names={"GE Medical": "north", "ge": "north"},
        exclude={"hospital": ["toshiba"]},
    )
    labels = LabelsConfig(kind=TaskKind.multilabel, names=["edema", "mass"], values={"none": ""})
    study = read_table(replace(write_study(rows, columns=columns), labels=labels), HASHED)
    assert study.task == Task(kind=TaskKind.multilabel, names=("edema", "mass"))
    assert [record.row for record in study.records] == [1, 2]
    assert [record.labels for record in study.records] == [(1, 1), (0, 0)]
    assert [record.site for record in study.records] == ["north", "north"]
    assert [dict(record.groups) for record in study.records] == [
        {"age": "0-60", "maker": "GE Medical"},
        {"age": "unknown", "maker": "ge"},
    ]


def test_a_table_without_a_row_left(write_study: WriteStudy) -> None:
    columns = replace(_COLUMNS, exclude={"split": ["train", "Validation", "TEST"]})
    assert "data.columns.exclude leaves out every row" in _refusal(write_study(columns=columns))


def test_a_parquet_table_of_every_kind_of_image(write_study: WriteStudy) -> None:
    config = write_study()
    assert config.root is not None
    np.save(config.root / "a" / "i.npy", np.full((6, 8), 100, dtype=np.uint8))
    nibabel.Nifti1Image(np.eye(6, dtype=np.int16), np.eye(4)).to_filename(config.root / "i.nii.gz")
    columns = {
        "file": ["a/secret-2.png", "a/i.npy", "i.nii.gz"],
        "patient_id": [17, 17, 18],
        "malignant": [True, False, True],
        "split": ["train", "train", "test"],
        "hospital": ["north"] * 3,
    }
    parquet.write_table(pa.table(columns), config.root / "metadata.parquet")
    study = read_table(replace(config, table="metadata.parquet"), HASHED)
    assert [record.labels for record in study.records] == [(1,), (0,), (1,)]
    assert [record.patient for record in study.records] == [
        HASHED(name) for name in ("17", "17", "18")
    ]
    for record in study.records[:2]:
        assert np.allclose(study.read(record), 100 / 255)
    assert np.array_equal(study.read(study.records[2]), np.eye(6))


def test_images_of_a_public_study_may_stand_for_themselves(write_study: WriteStudy) -> None:
    config = write_study(columns=replace(_COLUMNS, patient="patient_id"))
    config = replace(config, columns=replace(_COLUMNS, patient=None), public="drawn")
    assert len({record.patient for record in read_table(config, HASHED).records}) == 3


@pytest.mark.parametrize("folder", ["..", "nowhere", "metadata.csv"])
def test_images_lie_in_a_folder_of_the_study(write_study: WriteStudy, folder: str) -> None:
    config = write_study()
    assert "is no folder in data.root" in _refusal(replace(config, image_folder=folder))
    rows = [[row[0].removeprefix("a/"), *row[1:]] for row in _ROWS]
    assert config.root is not None
    with (config.root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([_HEADER, *rows])
    assert len(read_table(replace(config, image_folder="a"), HASHED).records) == 3


def _cbis() -> TableStudy:
    if not _CBIS.is_dir():
        pytest.skip("the CBIS-DDSM mass crops are not beside this repository")
    columns = ColumnsConfig(image="file", patient="patient_id", label="malignant", split="split")
    return read_table(
        DataConfig(kind=StudyKind.table, name="cbis", root=_CBIS, columns=columns), HASHED
    )


def test_cbis_masses_have_their_published_counts() -> None:
    study = _cbis()
    assert len(study.records) == 1698
    assert sum(record.labels[0] for record in study.records) == 784
    split = split_patients(study.records, val_fraction=0.1, test_fraction=0.2, seed=0)

    def counts(part: tuple[Record, ...]) -> tuple[int, int, int]:
        return len({r.patient for r in part}), len(part), sum(r.labels[0] for r in part)

    assert counts(split.train) == (578, 1104, 525)
    assert counts(split.val) == (102, 192, 102)
    assert counts(split.test) == (212, 402, 157)


def test_cbis_masses_load_as_a_cohort() -> None:
    study = _cbis()
    records = [record for record in study.records if record.split == "val"]
    cohort = load_cohort(study, records, image_size=64)
    assert cohort.images.shape == (192, 1, 64, 64)
    assert cohort.num_patients == 102
    assert 0 <= cohort.images.min() < cohort.images.max() <= 1
    assert 0.3 < cohort.images.mean() < 0.7

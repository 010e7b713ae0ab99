from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import configs
from client.data.check.study_check import StudyCheck, check_study
from client.data.study import Record, build
from common.config import DataConfig
from common.errors import DataError

SHARED = Path(__file__).parents[5] / "shared" / "data"

Make = Callable[..., Record]


def _quiet(stage: str, done: int, total: int) -> None:
    assert 0 < done <= total


def _noise(seed: int, size: int = 8) -> Any:
    return np.random.default_rng(seed).random((size, size), dtype=np.float32)


def _check(study: Any, **settings: Any) -> StudyCheck:
    return check_study(study, DataConfig(image_size=8, **settings), _quiet)


def test_every_defect_is_found_once_and_the_worst_first(make_record: Make, held_study: Any) -> None:
    records = [
        make_record(row, f"p{row}", row % 2, split="train", at=f"{row % 2}/{row}.png")
        for row in range(1, 61)
    ]
    images = {row: _noise(row) for row in range(1, 61)}
    images[7] = np.full((8, 8), 0.3, dtype=np.float32)  # constant
    images[12] = images[10]  # two patients
    del images[20]  # unreadable
    records[30] = make_record(31, "p33", 1, split="test", at="1/31.png")  # p33 is in train as well
    records[40] = make_record(41, "p41", 0, split="train", at="1/41.png")  # folder of ones
    check = _check(held_study(records=tuple(records), images=images))
    assert {finding.code: finding.rows for finding in check.findings} == {
        "unreadable": (20,),
        "patients_across_splits": (31, 33),
        "same_pixels_two_patients": (10, 12),
        "odd_in_folder": (41,),
        "nearly_constant": (7,),
        "unsaid": (),
    }
    assert [finding.severity.value for finding in check.findings] == [
        *["blocks"] * 2,
        *["warning"] * 3,
        "note",
    ]
    assert check.blocked
    wanted = {7, 10, 12, 31, 33, 41} | set(check.sample)
    assert set(check.pictures) == wanted
    assert check.pictures_of(check.findings[0]) == []  # what cannot be read has no picture
    assert [picture.row for picture in check.pictures_of(check.findings[2])] == [10, 12]


def test_a_sound_study_has_no_findings(make_record: Make, held_study: Any) -> None:
    records = tuple(
        make_record(row, groups={"sex": "F", "age": "0-30"}, site="A") for row in range(1, 61)
    )
    check = _check(held_study(records=records, images={row: _noise(row) for row in range(1, 61)}))
    assert check.findings == ()
    assert not check.blocked
    labels = [check.pictures[row].labels for row in check.sample]
    assert len(labels) == 24
    assert labels.count((0,)) == labels.count((1,)) == 12
    assert check.pictures[check.sample[0]].pixels.shape == (96, 96)


def test_more_than_half_smaller_than_the_model_sees(make_record: Make, held_study: Any) -> None:
    records = tuple(make_record(row) for row in (1, 2, 3))
    few = held_study(records=records, images={1: _noise(1, 7), 2: _noise(2), 3: _noise(3)})
    assert "enlarged" not in {finding.code for finding in _check(few).findings}
    most = held_study(records=records, images={1: _noise(1, 7), 2: _noise(2, 7), 3: _noise(3)})
    assert "enlarged" in {finding.code for finding in _check(most).findings}


def test_nothing_readable_is_still_told(make_record: Make, held_study: Any) -> None:
    records = tuple(make_record(row) for row in (1, 2, 3))
    check = _check(held_study(records=records))
    assert check.findings[0].rows == (1, 2, 3)
    assert check.sample == ()
    assert check.summary.sizes == ()


def test_rules_need_a_table_and_one_label(make_record: Make, held_study: Any) -> None:
    study = held_study(records=(make_record(1),), images={1: _noise(1)})
    with pytest.raises(DataError, match="only a study whose rows are those of a table"):
        _check(study, label_rules=["1: M >= 3"])


def _open(experiment: str, folder: str, *overrides: str) -> tuple[Any, DataConfig]:
    root = SHARED / folder
    if not (root / "metadata.csv").is_file():
        pytest.skip(f"shared/data/{folder} is not on this machine")
    config = configs.load([f"experiment={experiment}", f"data.root={root}", *overrides]).data
    study = build(config, num_sites=1, phantom_dir=Path("unused"), secret=bytes(32))
    return study, config


def _codes(check: StudyCheck) -> dict[str, tuple[int, ...]]:
    return {finding.code: finding.rows for finding in check.findings}


def test_the_four_nearly_constant_crops_of_cbis_and_what_it_does_not_say() -> None:
    check = check_study(*_open("cbis_masses", "cbis_ddsm_masses"), _quiet)
    codes = _codes(check)
    assert codes == {"nearly_constant": (690, 1250, 1253, 1254), "unsaid": ()}
    assert "age or sex or hospital" in check.findings[-1].text
    assert (check.summary.num_images, check.summary.num_patients) == (1698, 892)


def test_the_nih_image_in_the_wrong_folder() -> None:
    study, config = _open("nih_cxr", "nih_cxr1000_64px")
    codes = _codes(check_study(study, config, _quiet))
    with (SHARED / "nih_cxr1000_64px" / "metadata.csv").open() as file:
        table = list(csv.DictReader(file))
    wrong = [
        row
        for row, cells in enumerate(table, start=1)
        if ("abnormal" in Path(cells["file"]).parent.name) != (cells["abnormal"] == "1")
    ]
    assert codes["odd_in_folder"] == tuple(wrong)
    assert len(wrong) == 1


def test_the_forty_nodules_called_malignant_against_the_radiologists() -> None:
    check = check_study(
        *_open("lidc_nodules", "lidc_nodules", "data.columns.exclude.manufacturer=[]"), _quiet
    )
    assert len(_codes(check)["label_rule"]) == 40
    assert check.summary.num_images == 994


def test_a_rule_about_a_column_that_is_not_there() -> None:
    study, config = _open("kermany_cxr", "kermany_cxr_128", "data.label_rules=['1: nope >= 3']")
    with pytest.raises(DataError, match=r"data\.label_rules\.nope=nope: there is no such column"):
        check_study(study, config, _quiet)

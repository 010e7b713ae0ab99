from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

import configs
from client.data.cohort import load_cohort
from client.data.split import split_patients
from client.data.study import ImageKind, build
from common.config import Config, DataConfig, StudyKind, VolumeConfig
from common.errors import DataError
from simulations.partition import partition

_LIDC = Path(__file__).parents[4] / "shared" / "data" / "lidc_nodules"


def _study(root: Path) -> DataConfig:
    """Two NIfTI volumes of one patient and one of another, which holds -1000 HU alone."""
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient", "label"])
        for number, patient in enumerate(["secret-a", "secret-a", "secret-b"]):
            values = np.full((6, 8, 4), (0, 40, -1000)[number], dtype=np.int16)
            affine = np.diag([-1.0, -1.0, 2.0, 1.0])
            nibabel.Nifti1Image(values, affine).to_filename(root / f"secret-{number}.nii.gz")
            table.writerow([f"secret-{number}.nii.gz", patient, number % 2])
    return DataConfig(
        kind=StudyKind.ct_volumes, root=root, image_size=16, volume=VolumeConfig(depth=3)
    )


def test_volumes_load_as_a_cohort(tmp_path: Path) -> None:
    config = _study(tmp_path)
    study = build(config, num_sites=1, phantom_dir=tmp_path, secret=bytes(16))
    assert study.image_kind is ImageKind.volume
    cohort = load_cohort(study, study.records, image_size=16, depth=3)
    assert cohort.images.shape == (3, 1, 3, 16, 16)
    assert cohort.images.mean((1, 2, 3, 4)) == pytest.approx([0.4, 0.5, 0])
    assert cohort.patients.tolist() == [0, 0, 1]
    assert np.array_equal(cohort.labels, [0, 1, 0])


def test_volumes_need_a_number_of_slices(tmp_path: Path) -> None:
    study = build(_study(tmp_path), num_sites=1, phantom_dir=tmp_path, secret=bytes(16))
    with pytest.raises(DataError, match=r"data\.volume\.depth is not set"):
        load_cohort(study, study.records, image_size=16)


def test_an_unreadable_volume_is_named_by_its_row(tmp_path: Path) -> None:
    config = _study(tmp_path)
    (tmp_path / "secret-1.nii.gz").unlink()
    (tmp_path / "secret-1.nii.gz").mkdir()
    study = build(config, num_sites=1, phantom_dir=tmp_path, secret=bytes(16))
    with pytest.raises(DataError, match="the volume of row 2 has 0 CT slices") as caught:
        study.read(study.records[1])
    assert "secret" not in str(caught.value)


def _lidc(*overrides: str) -> Config:
    if not _LIDC.is_dir():
        pytest.skip("the LIDC nodules are not beside this repository")
    return configs.load(["experiment=lidc_nodules", f"data.root={_LIDC}", *overrides])


def test_lidc_has_three_sites_with_both_classes(tmp_path: Path) -> None:
    config = _lidc()
    study = build(config.data, num_sites=3, phantom_dir=tmp_path, secret=bytes(16))
    assert Counter(record.site for record in study.records) == {
        "ge": 692,
        "siemens": 182,
        "philips": 112,
    }
    assert sum(record.labels[0] for record in study.records) == 342
    split = split_patients(study.records, val_fraction=0.1, test_fraction=0.2, seed=0)
    sites = partition(split.train, config.partition, num_sites=3, seed=0)
    assert set(sites) == {"ge", "siemens", "philips"}
    assert {record.site for record in split.test} == {"ge", "siemens", "philips"}
    cohort = load_cohort(
        study, split.test[:20], image_size=config.data.image_size, depth=config.data.volume.depth
    )
    assert cohort.images.shape == (20, 1, 16, 64, 64)
    assert (cohort.images.max((1, 2, 3, 4)) > 0.5).all()  # soft tissue in the lung window
    assert (cohort.images.min((1, 2, 3, 4)) < 0.4).all()


def test_lidc_merges_the_smallest_site_by_configuration(tmp_path: Path) -> None:
    config = _lidc(
        "data.columns.exclude.manufacturer=[]", "data.columns.site_names.TOSHIBA=philips"
    )
    study = build(config.data, num_sites=3, phantom_dir=tmp_path, secret=bytes(16))
    assert Counter(record.site for record in study.records) == {
        "ge": 692,
        "siemens": 182,
        "philips": 120,
    }

"""Where simulated hospitals keep their ledgers, and when the next run may use them."""

from __future__ import annotations

import csv
import stat
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import configs
from common.config import Config, Unit
from common.errors import UsageError
from common.privacy.events import PoissonGaussianSteps
from simulations.run_dir import RunDir
from simulations.simulate import simulate
from simulations.sites import SimulatedSites, prepare

STEPS = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=2.0, steps=1)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Forty patients of two hospitals with one PNG each, every second one malignant."""
    root = tmp_path / "study"
    root.mkdir()
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "patient_id", "malignant", "hospital"])
        for number in range(40):
            pixels = np.full((16, 16), number, dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{number}.png")
            hospital = f"hospital-{1 + number // 20}"
            table.writerow([f"{number}.png", f"p{number}", number % 2, hospital])
    return root


def configured(study: Path, *overrides: str, ledger_dir: Path | None) -> Config:
    config = configs.load(
        [
            "data=table",
            f"data.root={study}",
            "data.columns.image=file",
            "data.columns.patient=patient_id",
            "data.columns.label=malignant",
            "data.image_size=16",
            "federation.num_sites=2",
            *overrides,
        ]
    )
    config.simulation.ledger_dir = ledger_dir
    return config


def prepared(config: Config, folder: Path) -> SimulatedSites:
    folder.mkdir()
    run_dir = RunDir(path=folder)
    run_dir.work.mkdir()
    run_dir.run_id.write_text(folder.name)
    hospitals = prepare(config, run_dir)
    return SimulatedSites(
        config=config, run_dir=run_dir, names=tuple(hospitals.sites), num_classes=2
    )


def charge(sites: SimulatedSites, name: str, request_id: str) -> None:
    setup = sites.setup(name)
    with setup.open_ledger(Unit.patient) as ledger:
        ledger.reserve(request_id=request_id, events=[STEPS], purpose="train", budget=setup.budget)
        ledger.commit(request_id)


def spent(sites: SimulatedSites, name: str) -> float:
    with sites.setup(name).open_ledger(Unit.patient) as ledger:
        return ledger.epsilon(1e-5)


def test_without_a_folder_each_run_has_its_own_ledgers(study: Path, tmp_path: Path) -> None:
    config = configured(study, "data.columns.site=hospital", ledger_dir=None)
    first = prepared(config, tmp_path / "first")
    charge(first, "hospital-1", "r")
    assert (tmp_path / "first" / "ledger" / "hospital-1.sqlite").is_file()
    assert spent(prepared(config, tmp_path / "second"), "hospital-1") == 0.0


def test_a_folder_of_ledgers_outlives_runs_and_finds_overlapping_cohorts(
    study: Path, tmp_path: Path
) -> None:
    ledgers = tmp_path / "ledgers"
    settings = ("data.columns.site=hospital",)
    first = prepared(configured(study, *settings, ledger_dir=ledgers), tmp_path / "first")
    charge(first, "hospital-1", "r")
    once = spent(first, "hospital-1")
    again = prepared(configured(study, *settings, ledger_dir=ledgers), tmp_path / "again")
    assert spent(again, "hospital-1") == once > 0
    assert spent(again, "hospital-2") == 0.0
    # Another seed holds out other patients: another cohort that shares most of them.
    other = configured(study, *settings, "seed=9", ledger_dir=ledgers)
    overlapping = prepared(other, tmp_path / "overlapping")
    assert spent(overlapping, "hospital-1") == once
    assert len(list((ledgers / "hospital-1").glob("*.sqlite"))) == 2
    charge(overlapping, "hospital-1", "s")
    assert spent(first, "hospital-1") == spent(overlapping, "hospital-1") > once
    assert not (tmp_path / "first" / "ledger").exists()


def test_runs_that_share_ledgers_never_share_noise(study: Path, tmp_path: Path) -> None:
    def noise_seed(ledger_dir: Path | None, folder: str) -> int:
        config = configured(study, ledger_dir=ledger_dir)
        sites = prepared(config, tmp_path / folder)
        seeds = sites.setup("site-1").seeds
        assert seeds.seed(1, "noise") == sites.setup("site-1").seeds.seed(1, "noise")
        return seeds.seed(1, "noise")

    assert noise_seed(None, "one") == noise_seed(None, "two")
    shared = tmp_path / "ledgers"
    assert noise_seed(shared, "three") != noise_seed(shared, "four")


def test_patients_that_moved_to_another_site_are_refused(study: Path, tmp_path: Path) -> None:
    ledgers = tmp_path / "ledgers"
    first = prepared(configured(study, ledger_dir=ledgers), tmp_path / "first")
    charge(first, "site-1", "r")
    charge(first, "site-2", "r")
    prepared(configured(study, ledger_dir=ledgers), tmp_path / "again")
    dealt_anew = configured(study, "seed=9", ledger_dir=ledgers)
    with pytest.raises(UsageError, match=r"simulation\.ledger_dir=.*patients of site-\d are in"):
        prepared(dealt_anew, tmp_path / "moved")


def test_a_lost_key_is_refused_not_made_anew(study: Path, tmp_path: Path) -> None:
    ledgers = tmp_path / "ledgers"
    config = configured(study, "data.columns.site=hospital", ledger_dir=ledgers)
    charge(prepared(config, tmp_path / "first"), "hospital-1", "r")
    (ledgers / "hospital-1" / "site.key").unlink()
    with pytest.raises(UsageError, match="hospital-1: the site key cannot be read"):
        prepared(config, tmp_path / "second")


def test_a_lost_key_of_the_reader_is_refused_too(study: Path, tmp_path: Path) -> None:
    """Under a new one every patient of these ledgers would be a stranger."""
    ledgers = tmp_path / "ledgers"
    config = configured(study, "data.columns.site=hospital", ledger_dir=ledgers)
    charge(prepared(config, tmp_path / "first"), "hospital-1", "r")
    (ledgers / "reader.key").unlink()
    with pytest.raises(UsageError, match=r"simulation\.ledger_dir=.*reader\.key"):
        prepared(config, tmp_path / "second")
    assert not (ledgers / "reader.key").exists()


def test_keys_are_for_their_owner_alone_and_differ_between_runs(
    study: Path, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        prepared(configured(study, ledger_dir=None), tmp_path / folder)
    first, second = (tmp_path / folder / "ledger" / "reader.key" for folder in ("one", "two"))
    assert first.read_text() != second.read_text()
    assert stat.S_IMODE(first.stat().st_mode) == 0o600


def test_the_same_seed_gives_the_same_cohorts_whatever_the_key(study: Path, tmp_path: Path) -> None:
    """Hashes differ from run to run; what is trained on must not."""
    images = []
    for folder in ("one", "two"):
        sites = prepared(configured(study, ledger_dir=None), tmp_path / folder)
        cohort = sites.setup("site-1").cohort
        images.append((cohort.images.tolist(), cohort.patients.tolist(), cohort.labels.tolist()))
    assert images[0] == images[1]


def test_no_plain_identifier_is_in_the_folder_of_a_run(study: Path, tmp_path: Path) -> None:
    table = (study / "metadata.csv").read_text().replace(".png,p", ".png,JANE-DOE-")
    (study / "metadata.csv").write_text(table)
    assert "JANE-DOE-7" in table
    ledgers = tmp_path / "ledgers"
    sites = prepared(configured(study, ledger_dir=ledgers), tmp_path / "run")
    charge(sites, "site-1", "r")
    files = [p for folder in (tmp_path / "run", ledgers) for p in folder.rglob("*") if p.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"JANE-DOE" in path.read_bytes()]


def test_a_cache_gives_the_same_cohorts_and_is_shared_by_runs(study: Path, tmp_path: Path) -> None:
    cohorts = []
    for folder, overrides in (
        ("plain", ()),
        ("cached", (f"data.cache_dir={tmp_path / 'cache'}",)),
        ("again", (f"data.cache_dir={tmp_path / 'cache'}", "privacy.epsilon=3")),
    ):
        sites = prepared(configured(study, *overrides, ledger_dir=None), tmp_path / folder)
        cohorts.append(sites.setup("site-2").cohort.images.tolist())
    assert cohorts[0] == cohorts[1] == cohorts[2]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_held_out_images_lie_on_disk(study: Path, tmp_path: Path) -> None:
    run_dir = RunDir(path=tmp_path / "run")
    run_dir.work.mkdir(parents=True)
    run_dir.run_id.write_text("run")
    hospitals = prepare(configured(study, ledger_dir=None), run_dir)
    seen = []
    for cohort in (hospitals.val, hospitals.test):
        assert isinstance(cohort.images, np.memmap)
        assert Path(cohort.images.filename).parent == run_dir.work
        means = cohort.images.mean(axis=(1, 2, 3)) * 255
        assert means == pytest.approx(np.round(means), abs=1e-3)  # each image is of one value
        assert np.array_equal(means.round() % 2, cohort.labels)
        seen += means.round().tolist()
    assert len(set(seen)) == len(seen) == len(hospitals.val.labels) + len(hospitals.test.labels)


def test_volumes_get_a_model_of_volumes_and_images_one_of_images(
    study: Path, tmp_path: Path
) -> None:
    """``data.volume.depth`` has a value also where there are no volumes."""
    small = ("model.architecture=test_vit", "model.patch_size=16")
    flat = prepared(configured(study, *small, ledger_dir=None), tmp_path / "flat")
    table = (study / "metadata.csv").read_text().replace(".png", ".nii")
    (study / "metadata.csv").write_text(table)
    for number in range(40):
        values = np.full((16, 16, 4), number, dtype=np.int16)
        nibabel.Nifti1Image(values, np.eye(4)).to_filename(study / f"{number}.nii")
    overrides = (*small, "data.kind=ct_volumes", "data.volume.depth=4")
    deep = prepared(configured(study, *overrides, ledger_dir=None), tmp_path / "deep")
    for sites, shape in ((flat, (1, 16, 16)), (deep, (1, 4, 16, 16))):
        setup = sites.setup("site-1")
        assert setup.cohort.images.shape[1:] == shape
        assert setup.model.build()(torch.zeros(2, *shape)).shape == (2, 2)


def test_a_file_cannot_hold_ledgers(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("years of work")
    run_dir = tmp_path / "run"
    config = configs.load([f"simulation.ledger_dir={file}", f"run_dir={run_dir}"])
    with pytest.raises(UsageError, match=r"simulation\.ledger_dir=.*file: not a folder"):
        simulate(config)
    assert not run_dir.exists()

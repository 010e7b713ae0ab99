"""Where simulated hospitals keep their ledgers, and when the next run may use them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
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


def test_a_file_cannot_hold_ledgers(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("years of work")
    run_dir = tmp_path / "run"
    config = configs.load([f"simulation.ledger_dir={file}", f"run_dir={run_dir}"])
    with pytest.raises(UsageError, match=r"simulation\.ledger_dir=.*file: not a folder"):
        simulate(config)
    assert not run_dir.exists()

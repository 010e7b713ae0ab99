"""From ``site.yaml`` to a site with its patients in memory."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.agent import site_file
from client.agent.hospital import open_hospital
from client.agent.site_file import SiteFile

MODEL = "model.architecture=test_vit, finetune=head, data.image_size=32, model.patch_size=16"
TABLE = "data=table, data.columns.image=file, data.columns.patient=who, data.columns.label=sick"
SITE = """\
schema: fedward.site/1
name: hospital-1
socket: agent.sock
policy: policy.yaml
state: {state}
settings: [{settings}]
"""


def site_of(tmp_path: Path, settings: str, state: str = "state") -> SiteFile:
    path = tmp_path / "site.yaml"
    path.write_text(SITE.format(state=state, settings=f"{MODEL}, {settings}"))
    return site_file.read(path)


@pytest.fixture
def table(tmp_path: Path) -> str:
    root = tmp_path / "study"
    root.mkdir()
    with (root / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "who", "sick"])
        for number in range(40):
            pixels = np.full((32, 32), number, dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{number}.png")
            rows.writerow([f"{number}.png", f"patient-{number}", number % 2])
    return f"{TABLE}, data.root={root}, data.test_fraction=0.3"


def test_training_patients_are_drawn_by_the_split_seed(tmp_path: Path, table: str) -> None:
    """As a simulation draws them, so that both keep the same patients for the test."""

    def training(words: str) -> str:
        return open_hospital(site_of(tmp_path, f"{table}, {words}")).fingerprint

    assert training("seed=1, data.split_seed=3") == training("seed=2, data.split_seed=3")
    assert training("seed=1") != training("seed=2")


def test_phantoms_are_said_to_be_made_up_and_patients_are_not(
    tmp_path: Path, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_hospital(site_of(tmp_path, table))
    assert "made up" not in caplog.text
    small = "data.phantom.num_train_per_site=4, data.phantom.num_val=2, data.phantom.num_test=2"
    root = tmp_path / "phantoms"
    root.mkdir()
    open_hospital(site_of(tmp_path, f"{small}, data.root={root}"))
    warned = [one for one in caplog.records if one.levelname == "WARNING"]
    assert [one.message for one in warned] == ["hospital-1 serves phantoms, made up: no patients"]

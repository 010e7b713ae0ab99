"""The job of ``fedward simulate`` in this process: what it refuses, what it says of privacy."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import UsageError

TABLE = (
    "data=table",
    "data.columns.image=file",
    "data.columns.patient=patient_id",
    "data.columns.label=malignant",
)
FEW = (
    "data.phantom.num_train_per_site=8",
    "data.phantom.num_val=8",
    "data.phantom.num_test=12",
    "data.phantom.size=32",
    "data.image_size=32",
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Forty patients with one PNG each, every second one malignant."""
    root = tmp_path / "study"
    root.mkdir()
    rng = np.random.default_rng(0)
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "patient_id", "malignant"])
        for number in range(40):
            Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(
                root / f"{number}.png"
            )
            table.writerow([f"{number}.png", f"SECRET-{number}", number % 2])
    return root


def never(*arguments: Any) -> Any:
    raise AssertionError("a hospital was asked")


def refusal(in_process: Any, tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as error:
        in_process(tmp_path / "run", *overrides, federate=never)
    line = str(error.value)
    assert "\n" not in line
    assert "SECRET" not in line
    return line


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("privacy.epsilon=0",), "privacy.epsilon=0.0: must be a finite number above 0"),
        (("privacy.epsilon=-1",), "above 0"),
        (("privacy.epsilon=nan",), "finite"),
        (("model=resnet",), "there are"),
        (("experiment=cbis_masses",), "data.root is not set"),
        (("model.architecture=vit_nowhere",), "model.architecture=vit_nowhere"),
        (("model.architecture=resnet18", "model.patch_size=null"), "model.architecture=resnet18"),
        (
            ("model=swin_tiny", "data.image_size=64", "privacy.engine=opacus_hooks"),
            "Opacus does not cover this model",
        ),
        (("privacy.engine=opacus_ghost", "privacy.clipping=per_layer"), "does not do"),
        (("finetune=last_blocks", "finetune.blocks=13"), "this model has 12 blocks"),
        (("privacy.site_budgets=[hospital-9:1]",), "no such site"),
    ],
)
def test_settings(overrides: tuple[str, ...], says: str, in_process: Any, tmp_path: Path) -> None:
    assert says in refusal(in_process, tmp_path, *FEW, *overrides)


def test_a_missing_column_lists_those_there_are(
    in_process: Any, study: Path, tmp_path: Path
) -> None:
    settings = (*TABLE, f"data.root={study}", "data.columns.label=cancer")
    line = refusal(in_process, tmp_path, *settings)
    for column in ("cancer", "file", "patient_id", "malignant"):
        assert column in line


def test_more_sites_than_patients(in_process: Any, study: Path, tmp_path: Path) -> None:
    settings = (*TABLE, f"data.root={study}", "federation.num_sites=50")
    assert "federation.num_sites" in refusal(in_process, tmp_path, *settings)


def test_a_site_without_a_malignant_case(in_process: Any, study: Path, tmp_path: Path) -> None:
    table = study / "metadata.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    for number, row in enumerate(rows[1:]):
        row[2] = str(int(number < 6))
        row.append("north" if number < 20 else "south")
    table.write_text("\n".join(",".join(row) for row in [[*rows[0], "site"], *rows[1:]]))
    site = ("data.columns.site=site", "federation.num_sites=2")
    assert "south" in refusal(in_process, tmp_path, *TABLE, f"data.root={study}", *site)


def test_a_test_set_that_measures_nothing(in_process: Any, study: Path, tmp_path: Path) -> None:
    table = study / "metadata.csv"
    lines = table.read_text().splitlines()
    parts = ["split", *["train"] * 20, *["val"] * 10, *["test"] * 10]
    rows = [f"{line},{part}" for line, part in zip(lines, parts, strict=True)]
    kept = [row for row in rows if not row.endswith("1,test")]
    table.write_text("\n".join(kept))
    settings = (*TABLE, f"data.root={study}", "data.columns.split=split", "federation.num_sites=2")
    line = refusal(in_process, tmp_path, *settings)
    assert "5 test images of 5 patients cannot measure a model: none of malignant is" in line


SMALL = (
    "model.patch_size=16",
    "data.phantom.num_train_per_site=24",
    "data.phantom.num_val=12",
    "data.phantom.num_test=24",
    "data.phantom.size=32",
    "data.image_size=32",
    "federation.rounds=3",
    "federation.steps_per_round=1",
    "privacy.images_per_patient=1",
)


def test_without_privacy_epsilon_is_null_not_a_number(in_process: Any, tmp_path: Path) -> None:
    result = in_process(tmp_path / "run", *SMALL, "privacy=none")[-1]["result"]
    privacy = result["privacy"]
    assert privacy["private"] is False
    assert privacy["epsilon_federation"] is None
    assert all(site["epsilon"] is None for site in privacy["sites"].values())
    answers = [site for record in result["rounds"] for site in record["sites"].values()]
    assert len(answers) == 9
    assert all(answer["epsilon"] is None for answer in answers)


def test_a_site_past_its_cap_refuses_and_the_others_go_on(in_process: Any, tmp_path: Path) -> None:
    cap = ("privacy.noise_multiplier=0.8", "privacy.site_budgets=[hospital-1:4.5]")
    result = in_process(tmp_path / "run", *SMALL, *cap)[-1]["result"]
    assert result["state"] == "completed-with-missing-sites"
    first, *later = [record["sites"]["hospital-1"] for record in result["rounds"]]
    assert first["status"] == "trained"
    assert {(site["status"], site["reason"]) for site in later} == {("refused", "budget_exceeded")}
    for name in ("hospital-2", "hospital-3"):
        assert {record["sites"][name]["status"] for record in result["rounds"]} == {"trained"}
    spends = result["privacy"]["sites"]
    assert spends["hospital-1"]["epsilon"] <= spends["hospital-1"]["epsilon_budget"] == 4.5
    assert spends["hospital-2"]["epsilon"] > 4.5
    assert spends["hospital-2"]["epsilon_budget"] is None


def test_same_seed_same_weights(in_process: Any, tmp_path: Path) -> None:
    finals = [
        in_process(tmp_path / name, *SMALL, f"seed={seed}")[-1]["result"]["final"]
        for name, seed in (("one", 5), ("again", 5), ("other", 6))
    ]
    assert finals[0] == finals[1]
    assert finals[0]["weights_sha256"] != finals[2]["weights_sha256"]

"""The main job, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from common.models import weights_sha256
from common.privacy.accountants import build
from common.privacy.events import PoissonGaussianSteps


def epsilons(result: dict[str, Any], site: str) -> list[float]:
    return [record["sites"][site]["epsilon"] for record in result["rounds"]]


def test_a_run_leaves_what_it_promises(first_run):
    assert first_run.code == 0, first_run.err
    assert first_run.err == ""
    result = first_run.result
    assert result["state"] == "completed"
    assert [record["round"] for record in result["rounds"]] == [1, 2, 3]
    test = result["final"]["test"]
    assert test["num_patients"] == 24
    assert test["num_images"] >= 24
    assert test["auroc_ci95"][0] <= test["auroc"] <= test["auroc_ci95"][1]
    left = {path.name for path in first_run.run_dir.iterdir()}
    assert left == {
        "checkpoints", "config.yaml", "ledger", "log.txt", "model_card.md", "phantoms",
        "predictions.csv", "report.html", "result.json", "run_id", "tensorboard",
        "weights.safetensors",
    }  # fmt: skip
    config = yaml.safe_load((first_run.run_dir / "config.yaml").read_text())
    assert config["privacy"]["epsilon"] == result["config"]["privacy"]["epsilon"] == 8.0
    weights = load_file(first_run.run_dir / "weights.safetensors")
    assert weights_sha256(weights) == result["final"]["weights_sha256"]
    assert "round 3/3" in first_run.out
    assert str(first_run.run_dir / "report.html") in first_run.out


def test_the_report_of_a_run_opens_offline_and_silently(first_run, browser):
    met = browser(first_run.run_dir / "report.html")
    assert met.console == []
    assert met.requests == []
    assert "hospital-3" in met.dom


def test_epsilon_counts_all_rounds_and_ends_at_the_target(first_run):
    result = first_run.result
    privacy = result["privacy"]
    assert privacy["unit"] == "patient"
    assert privacy["private"] is True
    for site, spend in privacy["sites"].items():
        grown = epsilons(result, site)
        assert grown == sorted(grown)
        assert len(set(grown)) == 3
        assert 0.98 * 8 < grown[-1] <= 8
        assert spend["epsilon"] == pytest.approx(grown[-1])
        for rounds, epsilon in enumerate(grown, start=1):
            done = PoissonGaussianSteps(
                sampling_rate=privacy["sampling_rate"],
                noise_multiplier=privacy["noise_multiplier"],
                steps=rounds * privacy["steps_per_round"],
            )
            assert epsilon == pytest.approx(build("pld").epsilon([done], privacy["delta"]))
    assert privacy["epsilon_federation"] == max(s["epsilon"] for s in privacy["sites"].values())


def test_real_crops_train(simulate, tmp_path: Path):
    root = Path(__file__).parents[3] / "shared" / "data" / "cbis_ddsm_masses"
    if not root.is_dir():
        pytest.skip("the CBIS-DDSM crops are not beside this checkout")
    run = simulate(
        "experiment=cbis_masses",
        f"data.root={root}",
        "federation.num_sites=5",
        "federation.rounds=2",
        "federation.steps_per_round=1",
        "privacy.sampling_rate=0.1",
        "privacy.images_per_patient=1",
        "model.patch_size=32",
        "data.image_size=64",
        run_dir=tmp_path / "run",
    )
    assert run.code == 0, run.err
    result = run.result
    test = result["final"]["test"]
    assert (test["num_patients"], test["num_images"]) == (212, 402)
    assert result["study"]["num_train_patients"] == 578
    patients = [site["num_patients"] for site in result["privacy"]["sites"].values()]
    assert sorted(patients) == [115, 115, 116, 116, 116]
    for path in (run.run_dir / "result.json", run.run_dir / "log.txt", run.run_dir / "report.html"):
        assert "P_0" not in path.read_text(), f"{path.name} names a patient"
    assert "P_0" not in json.dumps(run.out)

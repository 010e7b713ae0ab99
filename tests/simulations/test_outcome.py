"""From studies of every kind to result.json and the page, without training in between."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

import configs
from common import models
from common.evaluation import evaluate
from common.fairness import fairness
from common.seeds import derive_seed
from server.checkpoint import Checkpoint
from server.recipe import plan
from server.rounds import EndState, Outcome
from simulations.evaluation import HeldOut
from simulations.outcome import conclude
from simulations.predictions import Predictions
from simulations.run_dir import RunDir
from simulations.sites import SimulatedSites, prepare, shared_model

FEDWARD = Path(sys.executable).with_name("fedward")
NUM_PATIENTS = 60
COLUMNS = (
    "data.columns.image=file",
    "data.columns.patient=patient_id",
    "data.columns.label=label",
    "data.columns.groups={sex: sex, age: age}",
    "data.columns.bins={age: [0, 40, 60]}",
    "data.image_size=16",
    "data.test_fraction=0.4",
    "model.architecture=test_vit",
    "model.patch_size=16",
    "federation.num_sites=2",
    "privacy=none",
)


def write_study(root: Path, labels: list[str], *, volumes: bool = False) -> Path:
    root.mkdir()
    rng = np.random.default_rng(0)
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "patient_id", "label", "sex", "age", "split"])
        for number in range(NUM_PATIENTS):
            pixels = rng.integers(0, 256, (16, 16, 5), dtype=np.uint8)
            name = f"{number}.nii.gz" if volumes else f"{number}.png"
            if volumes:
                image = nibabel.Nifti1Image(pixels.astype(np.int16), np.eye(4))
                image.to_filename(root / name)
            else:
                Image.fromarray(pixels[:, :, 0]).save(root / name)
            sex, age = "FM"[number % 2], 20 + number % 50
            split = "train" if number < 30 else "val" if number < 40 else "test"
            table.writerow([name, f"p{number}", labels[number % len(labels)], sex, age, split])
    return root


def concluded(tmp_path: Path, root: Path, *overrides: str) -> tuple[dict[str, Any], str]:
    """The content of result.json and the page after the model was built and tested."""
    run_dir = RunDir(path=tmp_path / "run")
    run_dir.work.mkdir(parents=True)
    run_dir.run_id.write_text("0123456789abcdef")
    config = configs.load(["data=table", f"data.root={root}", *COLUMNS, *overrides])
    hospitals = prepare(config, run_dir)
    sites = SimulatedSites(
        config=config,
        run_dir=run_dir,
        names=tuple(hospitals.sites),
        num_classes=hospitals.num_classes,
    )
    model = shared_model(config, hospitals.num_classes, hospitals.depth).build()
    validation = HeldOut(model, hospitals.task, hospitals.val)
    test = HeldOut(model, hospitals.task, hospitals.test, thresholds_from=validation)
    test.check("test")
    outcome = Outcome(
        state=EndState.completed,
        recipe=plan(config, num_patients=sum(hospitals.sites.values())),
        sites={},
        checkpoint=Checkpoint(
            run_id="0123456789abcdef", round=0, weights=models.trainable_weights(model)
        ),
    )
    returned = conclude(hospitals, sites, outcome, test)
    written = json.loads(run_dir.result.read_text())
    assert written == json.loads(json.dumps(returned))
    return written, run_dir.report.read_text()


def test_a_binary_study_keeps_its_fields_and_gains_labels_and_groups(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", ["0", "0", "1", "1"])
    result, page = concluded(tmp_path, root, "data.labels.names=[pneumonia]")
    assert result["study"]["task"] == {"kind": "binary", "names": ["pneumonia"]}
    test = result["final"]["test"]
    assert {
        "auroc", "auroc_ci95", "auprc_malignant", "auprc_benign", "num_patients", "num_images",
    } < set(test)  # fmt: skip
    assert [label["name"] for label in test["labels"]] == ["pneumonia"]
    assert [row["value"] for row in test["groups"]["sex"]] == ["F", "M"]
    assert [row["value"] for row in test["groups"]["age"]] == ["0-40", "40-60", ">=60"]
    for rows in test["groups"].values():
        assert sum(row["num_patients"] for row in rows) == test["num_patients"] == 24
    assert "pneumonia" in page
    assert "malignant" not in page


def test_a_result_says_what_the_predictions_say(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", ["0", "0", "1", "1"])
    result, _ = concluded(tmp_path, root)
    path = tmp_path / "run" / "predictions.csv"
    final = result["final"]
    named = final["predictions"]
    assert named["file"] == path.name
    assert named["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_mode & 0o777 == 0o600  # the study is not said to be public
    again = Predictions.read(path)
    assert named["test_set"] == again.test_set.to_dict()
    seed = derive_seed(again.seed, "bootstrap")
    told = evaluate(again.scored, seed=seed).to_dict()
    assert {name: final["test"][name] for name in told} == told
    columns = fairness(again.scored, seed=seed)
    assert final["test"]["fairness"] == {name: one.to_dict() for name, one in columns.items()}
    assert set(columns) == {"sex", "age"}
    (label,) = final["test"]["labels"]
    assert label["threshold"] == again.scored.thresholds[0]
    assert 0 < label["figures"]["accuracy"]["value"] < 1
    assert "not_measured" not in {one["unsaid"] for one in label["figures"].values()}


def test_predictions_of_a_public_study_may_be_read_by_others(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", ["0", "0", "1", "1"])
    concluded(tmp_path, root, "data.public=made up")
    assert (tmp_path / "run" / "predictions.csv").stat().st_mode & 0o777 == 0o644


def test_findings_without_cases_are_named(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", ["mass|edema", "edema", "none", "mass"])
    result, page = concluded(
        tmp_path,
        root,
        "data.labels.kind=multilabel",
        "data.labels.names=[mass, edema, hernia]",
        "data.labels.values={none: ''}",
    )
    test = result["final"]["test"]
    assert test["left_out"] == ["hernia"]
    assert [label["auroc"] is None for label in test["labels"]] == [False, False, True]
    assert "auprc_malignant" not in test
    assert "Not in the mean: hernia." in page


def test_classes_are_measured(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", ["normal", "bacterial", "viral"])
    result, page = concluded(
        tmp_path,
        root,
        "data.labels.kind=multiclass",
        "data.labels.names=[normal, bacterial, viral]",
    )
    assert len(result["final"]["test"]["labels"]) == 3
    assert "How well the model tells 3 classes apart" in page


@pytest.mark.parametrize("cached", [False, True])
def test_volumes_are_measured_by_a_model_of_volumes(tmp_path: Path, cached: bool) -> None:
    root = write_study(tmp_path / "study", ["0", "0", "1", "1"], volumes=True)
    result, _ = concluded(
        tmp_path,
        root,
        "data.kind=ct_volumes",
        "data.volume.depth=5",
        *([f"data.cache_dir={tmp_path / 'cache'}"] if cached else []),
    )
    assert result["final"]["test"]["num_images"] == 24


def test_no_patient_is_named(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", ["0", "0", "1", "1"])
    table = (root / "metadata.csv").read_text().replace(".png,p", ".png,JANE-DOE-")
    (root / "metadata.csv").write_text(table)
    result, page = concluded(tmp_path, root)
    assert "JANE-DOE-7" in table
    answers = (tmp_path / "run" / "predictions.csv").read_text()
    assert "JANE-DOE" not in json.dumps(result) + page + answers

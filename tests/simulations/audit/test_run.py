"""The model audit of finished runs: real ones, made in this process."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import configs
from common.errors import UsageError
from simulations.audit.panel import read_panel
from simulations.audit.run import FinishedRun, audit_run, shares_of
from simulations.cli import app, main

Simulate = Callable[..., list[dict[str, Any]]]

SMALL = (
    "model=test_vit",
    "data.image_size=32",
    "data.phantom.size=32",
    "data.phantom.num_train_per_site=24",
    "data.phantom.num_val=20",
    "data.phantom.num_test=30",
    "federation.num_sites=2",
    "federation.rounds=2",
    "federation.steps_per_round=1",
    "privacy.images_per_patient=1",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def finished(in_process: Simulate, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run and returns its folder as ``fedward simulate`` leaves it."""

    def make(*overrides: str) -> Path:
        path = tmp_path / "run"
        in_process(path, *SMALL, *overrides)
        config = configs.load([*SMALL, *overrides, f"run_dir={path}"])
        (path / "config.yaml").write_text(configs.dump_yaml(config))
        shutil.rmtree(path / "work")
        return path

    return make


def quiet(*_: object) -> None:
    """Tells nobody."""


def test_a_run_is_audited_at_every_site(finished: Callable[..., Path], tmp_path: Path) -> None:
    path = finished("privacy.epsilon=8")
    told: list[tuple[str, int, int]] = []
    elsewhere = tmp_path / "figures.json"
    result = CliRunner().invoke(
        app, ["audit", "run", str(path), "--shadows", "2", "--json", str(elsewhere)]
    )
    assert result.exit_code == 0, result.output
    audit = json.loads((path / "audit.json").read_text())
    assert audit == json.loads(elsewhere.read_text())
    assert list(audit["sites"]) == ["hospital-1", "hospital-2"]
    spent = json.loads((path / "result.json").read_text())["privacy"]["sites"]
    for name, site in audit["sites"].items():
        # the phantoms' validation and test patients name their hospital
        assert (site["num_members"], site["non_members"]) == (24, "own")
        assert site["num_non_members"] == 25
        assert site["claim"]["epsilon"] == pytest.approx(spent[name]["epsilon"])
        for rate, bound in spent[name]["tpr_bound_at_fpr"].items():
            assert site["claim"]["tpr_bound_at_fpr"][rate] == pytest.approx(bound, abs=2e-3)
        assert set(site["attacks"]) == {"loss", "RMIA", "LiRA"}
        assert site["proof"]["confidence"] == pytest.approx(0.975)  # of two sites together
        # two noisy steps over 24 patients: nothing can be known
        for one in site["attacks"].values():
            assert one["auc_ci95"][0] < 0.5 < one["auc_ci95"][1]
    assert audit["passes_claim"] is False
    assert audit["shadows"] == 2
    assert "claimed epsilon" in result.output
    shown = read_panel(path)
    assert shown is not None
    assert shown.answer.endswith("does not pass what is claimed.")
    assert shown.answer in (path / "report.html").read_text()
    assert "at least 0.00" in (path / "report.html").read_text()
    run = FinishedRun.open(path)
    again = audit_run(
        run, num_shadows=2, confidence=0.95, progress=lambda *stage: told.append(stage)
    )
    assert again.sites["hospital-1"].strengths["LiRA"].auc == pytest.approx(
        audit["sites"]["hospital-1"]["attacks"]["LiRA"]["auc"]
    )
    assert told[-1] == ("training references", 8, 8)  # two rounds each


def test_the_claim_is_the_ledgers(finished: Callable[..., Path]) -> None:
    claim = FinishedRun.open(finished("privacy.epsilon=8")).claim("hospital-1")
    assert claim.epsilon == pytest.approx(8, abs=0.1)
    assert 0.01 < claim.allowed(0.01) < 0.9


def test_non_members_come_from_the_study_where_it_names_no_hospital(
    finished: Callable[..., Path],
) -> None:
    path = finished("privacy.epsilon=8", "partition=equal")
    _, shares = shares_of(FinishedRun.open(path))
    assert set(shares) == {"site-1", "site-2"}
    for share in shares.values():
        assert not share.own
        assert [len({record.patient for record in part}) for part in share.others] == [20, 30]
        trained = {record.patient for record in share.members}
        assert trained.isdisjoint(record.patient for part in share.others for record in part)


def test_nobody_waits_for_references_that_are_dear(finished: Callable[..., Path]) -> None:
    """Two hospitals, two rounds of a step, and the answers: three looks at the clock for each."""
    run = FinishedRun.open(finished("privacy.epsilon=8", "finetune=head"))
    # 300 seconds over two hospitals of 0, 30 or 900 seconds for each reference
    for seconds, num_shadows in ((0.0, 16), (10.0, 4), (300.0, 0)):
        looks = iter(range(100))
        found = audit_run(
            run,
            num_shadows=None,
            confidence=0.95,
            progress=quiet,
            clock=lambda unit=seconds, looks=looks: unit * next(looks),
        )
        assert found.seconds_each == 3 * seconds
        assert found.num_shadows == num_shadows


def _other_weights(path: Path) -> None:
    file = path / "weights.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)


def _edit(path: Path, old: str, new: str) -> None:
    text = (path / "config.yaml").read_text()
    assert old in text
    (path / "config.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda path: (path / "config.yaml").unlink(), "not the folder of a run"),
        (lambda path: (path / "result.json").unlink(), "no result of a finished run"),
        (lambda path: (path / "weights.safetensors").unlink(), "not the weights of a run"),
        (_other_weights, "not the weights that result.json names"),
        (lambda path: _edit(path, "num_train_per_site: 24", "num_train_per_site: 23"), "not what"),
        (lambda path: _edit(path, "personal: none", "personal: head"), "kept layers to themselves"),
        (lambda path: shutil.rmtree(path / "checkpoints"), "no hospital trained"),
        (lambda path: (path / "ledger/hospital-1.sqlite").write_bytes(b"x"), "hospital-1.sqlite"),
    ],
    ids=["config", "result", "weights", "replaced", "study", "personal", "untrained", "ledger"],
)
def test_a_run_that_cannot_be_audited_is_one_line(
    finished: Callable[..., Path], break_it: Callable[[Path], object], complaint: str
) -> None:
    path = finished("privacy.epsilon=8")
    break_it(path)
    with pytest.raises(UsageError, match=complaint) as caught:
        audit_run(FinishedRun.open(path), num_shadows=0, confidence=0.95, progress=quiet)
    assert "\n" not in str(caught.value)
    assert not (path / "audit.json").exists()


def test_too_few_patients_are_refused(finished: Callable[..., Path]) -> None:
    path = finished(
        "privacy.epsilon=8",
        "data.phantom.num_val=4",
        "data.phantom.num_test=4",
        "partition=equal",
        "data.phantom.num_train_per_site=7",
    )
    with pytest.raises(UsageError, match="an audit needs 8 patients of each"):
        shares_of(FinishedRun.open(path))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "not the folder of a run"),
        (("--shadows", "3"), "--shadows=3: must be even"),
        (("--confidence", "1"), "--confidence=1"),
        (("--engine", "absent.json"), "--engine=absent.json: No such file"),
        (("--engine", "figures.json"), "not what fedward audit engine --json writes"),
        (("--json", "absent/figures.json"), "no such folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and value else "",
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures.json").write_text('{"epsilon_claimed": 1}')
    monkeypatch.setattr(sys, "argv", ["fedward", "audit", "run", "run", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert complaint in err
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_an_audit_of_the_engine_in_the_folder_stands_beside(finished: Callable[..., Path]) -> None:
    path = finished("privacy.epsilon=8")
    engine = {
        "epsilon_claimed": 4.0,
        "epsilon_lower_bound": 3.2,
        "confidence": 0.95,
        "passes_claim": False,
        "delta": 1e-5,
        "unit": "patient",
        "accountant": "pld",
        "recipe": {"noise_multiplier": 1.0, "sampling_rate": 0.25},
    }
    (path / "engine.json").write_text(json.dumps(engine))
    result = CliRunner().invoke(app, ["audit", "run", str(path), "--shadows", "0"])
    assert result.exit_code == 0, result.output
    shown = read_panel(path)
    assert shown is not None
    assert [gauge.name for gauge in shown.gauges] == ["engine", "hospital-1", "hospital-2"]
    assert "at least 3.20" in (path / "report.html").read_text()

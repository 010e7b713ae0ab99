"""Real trials on phantoms, and what is said of them."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from simulations.comparison.folder import Folder
from simulations.comparison.plan import Plan, plan
from simulations.comparison.request import Request, parse
from simulations.comparison.summary import compare
from simulations.comparison.tables import as_csv, as_lines
from simulations.comparison.trial import Job, run_trial

Done = tuple[Request, Plan, Folder]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Done:
    """Three arms, two seeds, with and without privacy."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    asked = parse([f"out={out}", *tiny, "seeds=1,2"])
    folder = Folder(path=out)
    planned = plan(asked, folder)
    for trial in planned.trials:
        run_trial(Job(name=trial.name, start=trial.start, folder=folder, config=trial.config))
    return asked, planned, folder


@pytest.fixture
def copied(done: Done, tmp_path: Path) -> Done:
    """The same trials, to be damaged."""
    asked, planned, folder = done
    shutil.copytree(folder.path, tmp_path / "out")
    return asked, planned, Folder(path=tmp_path / "out")


def comparison_of(done: Done, **problems: str) -> dict[str, Any]:
    asked, planned, folder = done
    found = compare(asked, planned, folder, problems)
    return json.loads(json.dumps(found, allow_nan=False))


def test_a_trial_leaves_what_is_read_later_and_nothing_else(done: Done) -> None:
    _, planned, folder = done
    assert len(list(folder.trials.iterdir())) == len(planned.trials) == 16
    for path in folder.trials.iterdir():
        left = {item.name for item in path.iterdir()}
        assert left == {"config.yaml", "result.json", "predictions.csv", "report.html"}
    assert list(folder.work.iterdir()) == []
    # One set of decoded images and one of phantoms, for all.
    assert len(list(folder.cache.glob("*.npy"))) == 1
    assert len(list(folder.phantoms.iterdir())) == 1


def test_equal_patients_steps_and_epsilon(done: Done) -> None:
    comparison = comparison_of(done)
    equal = comparison["equal"]
    assert equal["num_test_patients"] == 24
    assert equal["num_train_patients"] == 16
    assert equal["steps"] == [2]
    assert [r for r in equal["remarks"] if "tested on the patients of all" not in r] == []
    for cell in comparison["cells"]:
        spent = cell["privacy"]["epsilon"]
        if cell["epsilon"] is None:
            assert spent is None
            assert cell["privacy"]["private"] is False
        else:
            assert 0.95 * 8 < spent <= 8
            assert cell["privacy"]["epsilon_claimed"] == spent


def test_cells_are_the_results_of_their_runs(done: Done) -> None:
    _, planned, folder = done
    comparison = comparison_of(done)
    assert [(c["arm"], c["epsilon"], c["seeds"]) for c in comparison["cells"]] == [
        (arm, epsilon, [1, 2])
        for arm in ("centralized", "federated", "local")
        for epsilon in (8.0, None)
    ]
    aurocs: dict[tuple[Any, ...], list[float]] = {}
    for trial in planned.trials:
        result = json.loads(folder.finished(trial.name).result.read_text())
        epsilon = trial.cell.epsilon if math.isfinite(trial.cell.epsilon) else None
        key = (trial.cell.arm, epsilon, str(trial.seed))
        aurocs.setdefault(key, []).append(result["final"]["test"]["auroc"])
    for cell in comparison["cells"]:
        for seed, value in cell["figures"]["auroc"]["by_seed"].items():
            own = aurocs[cell["arm"], cell["epsilon"], seed]
            assert len(own) == (2 if cell["arm"] == "local" else 1)
            assert value == pytest.approx(sum(own) / len(own))
        assert list(cell["sites"]) == (
            ["hospital-1", "hospital-2"] if cell["arm"] == "local" else []
        )
    about = [one["about"] for one in comparison["differences"]]
    assert {name: about.count(name) for name in about} == {
        "federation": 2,
        "alone": 2,
        "privacy": 3,
    }
    assert len(comparison["checks"]) == 1 + 2 + 3
    assert comparison["missing"] == []


def test_the_table_has_a_row_for_each_cell_and_lone_hospital(done: Done) -> None:
    comparison = comparison_of(done)
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert len(rows) == 6 + 2 * 2
    first = rows[0]
    assert (first["arm"], first["epsilon"], first["site"]) == ("centralized", "8.0", "")
    assert rows[1]["epsilon"] == rows[1]["epsilon_spent"] == "inf"
    auroc = comparison["cells"][0]["figures"]["auroc"]
    assert float(first["auroc"]) == auroc["patients"]["value"]
    low, high = auroc["patients_and_seeds"]["ci95"]
    assert float(first["auroc_patients_and_seeds_low"]) == low
    assert float(first["auroc_patients_and_seeds_high"]) == high


def test_lines_for_a_terminal(done: Done) -> None:
    comparison = comparison_of(done)
    lines = list(as_lines(comparison))
    auroc = comparison["cells"][2]["figures"]["auroc"]["patients"]["value"]
    (row,) = [line for line in lines if line.startswith("federated  ") and " 8.0 " in line]
    assert f"{auroc:.3f}" in row
    assert any("24 test patients, the same for all; epsilon at delta" in line for line in lines)
    assert not any("MISSING" in line for line in lines)


def test_a_missing_trial_is_named(copied: Done) -> None:
    _, planned, folder = copied
    gone = next(t for t in planned.trials if t.cell.arm == "local" and t.seed == 2)
    shutil.rmtree(folder.finished(gone.name).path)
    comparison = comparison_of(copied, **{gone.name: "no room"})
    assert comparison["missing"] == [{"trial": gone.title, "name": gone.name, "problem": "no room"}]
    (cell,) = [c for c in comparison["cells"] if c["missing_seeds"]]
    assert (cell["arm"], cell["seeds"], cell["missing_seeds"]) == ("local", [1], [2])
    lines = list(as_lines(comparison))
    assert "MISSING: 1 of 16 trials have no result:" in lines
    assert f"- {gone.title}: no room" in lines


def test_nothing_done_is_said_too(copied: Done) -> None:
    shutil.rmtree(copied[2].trials)
    comparison = comparison_of(copied)
    assert comparison["cells"] == comparison["checks"] == []
    assert len(comparison["missing"]) == 16
    assert as_csv(comparison).startswith("arm,")
    assert "MISSING: 16 of 16 trials have no result:" in list(as_lines(comparison))


def test_another_test_set_is_refused(copied: Done) -> None:
    _, planned, folder = copied
    path = folder.finished(planned.trials[3].name).predictions
    other = json.loads(path.read_text().split("\n", 2)[1].removeprefix("# "))
    cases = other["test_set"]["cases"]
    path.write_text(path.read_text().replace(cases, "0" * len(cases)))
    with pytest.raises(UsageError, match="were tested on different test sets"):
        comparison_of(copied)


def test_the_same_seed_gives_the_same_figures(done: Done, tmp_path: Path) -> None:
    _, planned, folder = done
    trial = next(t for t in planned.trials if t.cell.arm == "federated")
    again = Folder(path=tmp_path)
    run_trial(Job(name=trial.name, start=None, folder=again, config=trial.config))
    one, other = (
        json.loads(place.finished(trial.name).result.read_text())["final"]["weights_sha256"]
        for place in (folder, again)
    )
    assert one == other

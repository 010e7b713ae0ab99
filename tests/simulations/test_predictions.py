"""Answers kept for later: whole, exact, private where the study is, and of one test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.data.cohort import Cohort
from common.config import TaskKind
from common.errors import UsageError
from common.scored import Scored
from common.task import Task
from simulations.predictions import Predictions, TestSet, same_test_set

BINARY = Task(kind=TaskKind.binary, names=("malignant",))
CLASSES = Task(kind=TaskKind.multiclass, names=("normal", "bacterial", "viral"))
FINDINGS = Task(kind=TaskKind.multilabel, names=("mass, large", 'the "other"', "ödem"))


def cohort(seed: int = 0, size: int = 8) -> Cohort:
    rng = np.random.default_rng(seed)
    return Cohort(
        images=rng.random((600, 1, size, size), dtype=np.float32),
        labels=np.arange(600) % 2,
        patients=np.arange(600) // 2,
        num_patients=300,
        patient_ids=(),
        groups={"sex": np.array(["F", "M"])[np.arange(600) // 2 % 2]},
    )


def predictions(task: Task = BINARY, **changes: object) -> Predictions:
    rng = np.random.default_rng(1)
    num_names = len(task.names)
    labels: NDArray[np.int64] = rng.integers(max(2, num_names), size=6)
    if task.kind is TaskKind.multilabel:
        labels = rng.integers(-1, 2, size=(6, num_names))
    facts: dict[str, object] = {
        "task": task,
        "labels": labels,
        "scores": rng.random((6, num_names)),
        "patients": np.array([0, 0, 1, 2, 2, 3]),
        "groups": {"sex": np.array(["F", "F", "M", "un,known", "un,known", '"'])},
        "thresholds": (0.1 + 0.2, None, 1e-9)[:num_names],
    }
    scored = Scored(**(facts | changes))
    return Predictions(test_set=TestSet.of(cohort()), seed=42, scored=scored)


@pytest.mark.parametrize("task", [BINARY, CLASSES, FINDINGS])
def test_what_is_read_is_what_was_written_to_the_last_digit(task: Task, tmp_path: Path) -> None:
    one, path = predictions(task), tmp_path / "predictions.csv"
    one.write(path, public=True)
    again = Predictions.read(path)
    assert (again.test_set, again.seed) == (one.test_set, one.seed)
    assert (again.scored.task, again.scored.thresholds) == (task, one.scored.thresholds)
    for name in ("labels", "scores", "patients"):
        np.testing.assert_array_equal(getattr(again.scored, name), getattr(one.scored, name))
    np.testing.assert_array_equal(again.scored.groups["sex"], one.scored.groups["sex"])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_score_survives(score: float) -> None:
    """As text of the shortest form that names the number."""
    assert float(str(np.float64(score).tolist())) == score


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    predictions().write(path, public=True)
    note, facts, header, first, *_ = path.read_text().splitlines()
    assert "public only where the study is" in note
    assert facts.startswith('# {"schema": "fedward.predictions/1"')
    assert header == "patient,label,score:malignant,group:sex"
    assert first.startswith("0,")
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"]


@pytest.mark.parametrize(("public", "mode"), [(True, 0o644), (False, 0o600)])
def test_only_the_owner_reads_answers_about_a_private_study(
    tmp_path: Path, public: bool, mode: int
) -> None:
    path = tmp_path / "predictions.csv"
    predictions().write(path, public=public)
    assert path.stat().st_mode & 0o777 == mode


def test_a_test_set_is_known_by_its_patients_and_its_pixels() -> None:
    base = TestSet.of(cohort())
    assert base.differs_from(TestSet.of(cohort())) is None
    swapped = replace(cohort(), labels=1 - cohort().labels)
    assert "patients" in (base.differs_from(TestSet.of(swapped)) or "")
    regrouped = replace(cohort(), patients=np.arange(600) // 3)
    assert "patients" in (base.differs_from(TestSet.of(regrouped)) or "")
    last = cohort()
    last.images[-1, 0, -1, -1] += 0.5
    assert "images" in (base.differs_from(TestSet.of(last)) or "")
    assert "images" in (base.differs_from(TestSet.of(cohort(seed=1))) or "")
    # The same patients at another size: the pixels cannot agree, the cases do.
    assert base.differs_from(TestSet.of(cohort(size=4))) is None


def test_a_map_on_disk_is_the_same_test_set(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", cohort().images)
    mapped = replace(cohort(), images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    assert TestSet.of(mapped) == TestSet.of(cohort())


def test_runs_on_other_test_sets_are_refused_by_name() -> None:
    one = predictions()
    other = replace(one, test_set=TestSet.of(cohort(seed=1)))
    same_test_set({Path("a"): one, Path("b"): replace(one, seed=43)})
    with pytest.raises(UsageError, match=r"a and c: .*other images"):
        same_test_set({Path("a"): one, Path("b"): one, Path("c"): other})
    renamed = replace(one.scored, task=replace(BINARY, names=("benign",)))
    with pytest.raises(UsageError, match=r"a and b: .*another task"):
        same_test_set({Path("a"): one, Path("b"): replace(one, scored=renamed)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "patient,score\n1,2\n",
        lambda text: text.replace("predictions/1", "predictions/2"),
        lambda text: text.replace("\n0,", "\n0,0,", 1),
        lambda text: text.replace("\n0,", "\nx,", 1),
        lambda text: text.replace('"binary"', '"ternary"'),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "predictions.csv"
    predictions().write(path, public=True)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UsageError, match=r"predictions\.csv") as caught:
        Predictions.read(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Predictions.read(tmp_path / "predictions.csv")

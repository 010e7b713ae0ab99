"""Figures of every kind of task against scikit-learn, with what is missing left out by name."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from common.config import TaskKind
from common.evaluation import Macro, Scored, evaluate, in_order, macro_auroc, targets, usable
from common.redraws import Ranking, auroc_intervals
from common.task import Task

BINARY = Task(kind=TaskKind.binary, names=("pneumonia",))
CLASSES = Task(kind=TaskKind.multiclass, names=("normal", "bacterial", "viral"))
FINDINGS = Task(kind=TaskKind.multilabel, names=("mass", "edema", "hernia"))


def scored(task: Task, labels: NDArray[np.int64], **changes: object) -> Scored:
    """Scores that know something of the labels; four images of each patient."""
    rng = np.random.default_rng(1)
    answers = targets(task, labels)
    facts: dict[str, object] = {
        "scores": answers + rng.normal(size=answers.shape).round(1),
        "patients": np.arange(len(labels)) // 4,
    }
    return Scored(task=task, labels=labels, **(facts | changes))


def drawn(task: Task, num_images: int = 120) -> NDArray[np.int64]:
    rng = np.random.default_rng(2)
    match task.kind:
        case TaskKind.binary:
            return rng.integers(2, size=num_images)
        case TaskKind.multiclass:
            return rng.integers(3, size=num_images)
        case TaskKind.multilabel:
            return rng.integers(-1, 2, size=(num_images, 3))


def test_a_binary_result_keeps_its_names() -> None:
    labels = drawn(BINARY)
    case = scored(BINARY, labels)
    found = evaluate(case, seed=9).to_dict()
    scores = case.scores[:, 0]
    interval = auroc_intervals([Ranking.of(labels, scores)], case.patients, seed=9).macro
    figures = {
        "auroc": pytest.approx(roc_auc_score(labels, scores)),
        "auroc_ci95": list(interval),
    }
    auprc = pytest.approx(average_precision_score(labels, scores))
    auprc_negative = pytest.approx(average_precision_score(1 - labels, -scores))
    num_patients = {answer: len(set(case.patients[labels == answer])) for answer in (0, 1)}
    assert found == figures | {
        "auprc_malignant": auprc,
        "auprc_benign": auprc_negative,
        "num_patients": 30,
        "num_images": 120,
        "num_patients_of_class": min(num_patients.values()),
        "left_out": [],
        "labels": [
            figures
            | {
                "name": "pneumonia",
                "num_images": 120,
                "num_positive": int(labels.sum()),
                "num_positive_patients": num_patients[1],
                "num_negative_patients": num_patients[0],
                "auprc": auprc,
                "auprc_negative": auprc_negative,
            }
        ],
        "groups": {},
    }


def test_classes_are_measured_one_against_the_rest() -> None:
    labels = drawn(CLASSES)
    case = scored(CLASSES, labels)
    probabilities = np.exp(case.scores) / np.exp(case.scores).sum(1, keepdims=True)
    case = scored(CLASSES, labels, scores=probabilities)
    found = evaluate(case, seed=1)
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert found.macro.auroc == pytest.approx(expected)
    assert macro_auroc(case) == pytest.approx(expected)
    for place, label in enumerate(found.labels):
        assert label.num_positive == (labels == place).sum()
        assert label.auroc == pytest.approx(roc_auc_score(labels == place, probabilities[:, place]))
    assert "auprc_malignant" not in found.to_dict()


def test_unknown_labels_are_left_out_label_by_label() -> None:
    labels = drawn(FINDINGS)
    case = scored(FINDINGS, labels)
    found = evaluate(case, seed=1)
    aurocs = []
    for place, label in enumerate(found.labels):
        known = labels[:, place] >= 0
        truth, scores = labels[known, place], case.scores[known, place]
        aurocs.append(roc_auc_score(truth, scores))
        assert label.name == FINDINGS.names[place]
        assert label.num_images == known.sum() < 120
        assert label.auroc == pytest.approx(aurocs[-1])
        assert label.auprc == pytest.approx(average_precision_score(truth, scores))
        assert label.auprc_negative == pytest.approx(average_precision_score(1 - truth, -scores))
    assert found.macro.auroc == pytest.approx(np.mean(aurocs))
    # The score of an image whose label is unknown changes nothing.
    shuffled = np.where(labels >= 0, case.scores, 99.0)
    assert evaluate(scored(FINDINGS, labels, scores=shuffled), seed=1) == found


def test_the_interval_of_the_mean_is_that_of_shared_redraws() -> None:
    labels = drawn(FINDINGS)
    case = scored(FINDINGS, labels)
    rankings = [Ranking.of(labels[:, place], case.scores[:, place]) for place in range(3)]
    expected = auroc_intervals(rankings, case.patients, seed=6)
    found = evaluate(case, seed=6)
    assert found.macro.auroc_ci95 == expected.macro
    assert tuple(label.auroc_ci95 for label in found.labels) == expected.labels
    low, high = expected.macro
    assert all(high - low < one[1] - one[0] for one in expected.labels)


@pytest.mark.parametrize("constant", [-1, 0, 1])
def test_a_label_without_both_classes_is_left_out_and_named(constant: int) -> None:
    labels = drawn(FINDINGS)
    labels[:, 2] = constant
    found = evaluate(scored(FINDINGS, labels), seed=1)
    assert found.macro.left_out == ("hernia",)
    mass, edema, hernia = found.labels
    assert found.macro.auroc == pytest.approx((mass.auroc + edema.auroc) / 2)
    figures = (hernia.auroc, hernia.auroc_ci95, hernia.auprc, hernia.auprc_negative)
    assert figures == (None, None, None, None)
    assert hernia.num_positive == max(0, constant) * 120


def test_groups_are_measured_apart() -> None:
    labels = drawn(BINARY)
    sex = np.array(["F", "M"])[np.arange(120) // 4 % 2]
    age = np.array(["30-60", "<30", "unknown"])[np.arange(120) // 4 % 3]
    case = scored(BINARY, labels, groups={"sex": sex, "age": age})
    found = evaluate(case, seed=5)
    assert list(found.groups) == ["sex", "age"]
    assert list(found.groups["age"]) == ["<30", "30-60", "unknown"]
    women = found.groups["sex"]["F"]
    rows = sex == "F"
    assert women.auroc == pytest.approx(roc_auc_score(labels[rows], case.scores[rows, 0]))
    assert (women.num_patients, women.num_images) == (15, 60)
    alone = evaluate(case.part(rows), seed=5)
    assert women == alone.macro
    (low, high), (wide_low, wide_high) = found.macro.auroc_ci95, women.auroc_ci95
    assert wide_high - wide_low > high - low
    assert found.to_dict()["groups"]["sex"][0] == {"value": "F"} | women.to_dict()


def test_a_group_without_a_class_or_of_one_patient_is_not_enough() -> None:
    labels = drawn(BINARY)
    scanner = np.array(["large"] * 108 + ["well"] * 8 + ["lone"] * 4)
    labels[108:116] = 0
    labels[116:] = [0, 1, 0, 1]
    found = evaluate(scored(BINARY, labels, groups={"scanner": scanner}), seed=5)
    nothing = {"auroc": None, "auroc_ci95": None, "left_out": ("pneumonia",)}
    assert found.groups["scanner"]["well"] == Macro(
        **nothing, num_patients_of_class=0, num_patients=2, num_images=8
    )
    assert found.groups["scanner"]["lone"] == Macro(
        **nothing, num_patients_of_class=0, num_patients=1, num_images=4
    )
    assert found.groups["scanner"]["large"].auroc is not None


def test_the_smaller_side_counts_patients_of_the_best_known_label() -> None:
    labels = np.zeros((40, 3), dtype=np.int64)
    labels[:4, 0] = 1  # all images of one patient
    labels[::4, 1] = 1  # one image of each of ten
    labels[::8, 1] = 0  # but five of them have none
    found = evaluate(scored(FINDINGS, labels), seed=0)
    assert found.labels[0].num_positive_patients == 1
    assert found.labels[0].num_negative_patients == 9
    assert found.macro.num_patients_of_class == 5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24))
def test_nothing_raises_and_all_is_plain_json(seed: int, num_images: int) -> None:
    """Whatever classes, groups and patients there happen to be."""
    rng = np.random.default_rng(seed)
    task = (BINARY, CLASSES, FINDINGS)[seed % 3]
    labels = drawn(task, 200)[rng.integers(200, size=num_images)]
    case = scored(
        task,
        labels,
        patients=rng.integers(4, size=num_images),
        groups={"site": rng.choice(["a", "b", "c"], size=num_images)},
    )
    found = evaluate(case, seed=0).to_dict()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert (found["auroc"] is not None) == usable(task, labels, case.patients)
    if found["auroc"] is not None:
        assert macro_auroc(case) == found["auroc"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": np.zeros((4, 2))}, r"scores \(4, 2\): must be \(4, 1\)"),
        ({"scores": np.array([[0.1], [math.nan], [0.2], [math.inf]])}, "2 of 4 are NaN"),
        ({"patients": np.arange(3)}, "vectors of 4"),
        ({"groups": {"sex": np.array(["F"])}}, "vectors of 4"),
        ({"labels": np.array([0, 1, 2, 1])}, "between 0 and 1"),
        ({"labels": np.array([0, 1, -1, 1])}, "between 0 and 1"),
        ({"labels": np.zeros((4, 1), dtype=np.int64)}, r"\(4, 1\): must be \(4,\) for a binary"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], words: str) -> None:
    facts = {"labels": np.array([0, 1, 0, 1]), "scores": np.zeros((4, 1)), "patients": np.arange(4)}
    with pytest.raises(ValueError, match=words):
        Scored(task=BINARY, **(facts | changes))


def test_nothing_of_a_patient_is_in_the_repr() -> None:
    case = scored(BINARY, drawn(BINARY), groups={"sex": np.array(["F"] * 120)})
    assert "array" not in repr(case)


@given(st.permutations(["<20", "20-40", "40-100", "100-120", ">=120", "F", "M", "unknown"]))
def test_values_are_in_order_however_they_come(values: list[str]) -> None:
    assert in_order(values) == ["<20", "20-40", "40-100", "100-120", ">=120", "F", "M", "unknown"]

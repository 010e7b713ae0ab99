"""Figures of every kind of task against scikit-learn, with what is missing left out by name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
)

from common.config import TaskKind
from common.estimate import Unsaid
from common.evaluation import Macro, evaluate, in_order, macro_auroc, usable
from common.figures import Figure
from common.redraws import Ranking, auroc_intervals
from common.scored import Scored, targets, youden_thresholds
from common.task import Task
from common.thresholds import youden_threshold

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
    more = found["figures"]
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
                "threshold": None,
                "figures": more,
                "ece_if_calibrated": None,
                "reliability": [],
            }
        ],
        "groups": {},
        "figures": more,
    }
    assert {name for name, one in more.items() if one["value"] is not None} == {
        "auprc",
        "auprc_negative",
    }
    assert more["auprc"]["value"] == auprc


@pytest.mark.parametrize("task", [BINARY, CLASSES, FINDINGS])
def test_figures_beside_the_auroc(task: Task) -> None:
    labels = drawn(task, 400)
    answers = targets(task, labels)
    noise = np.random.default_rng(3).normal(size=answers.shape)
    thresholds = (0.45, 0.5, 0.55)[: answers.shape[1]]
    scores = 1 / (1 + np.exp(-(2.0 * answers - 1 + noise)))
    found = evaluate(scored(task, labels, scores=scores, thresholds=thresholds), seed=2)
    for place, label in enumerate(found.labels):
        known = answers[:, place] >= 0
        truth, probabilities = answers[known, place], scores[known, place]
        said = probabilities >= thresholds[place]
        assert label.threshold == thresholds[place]
        values = {figure: estimate.value for figure, estimate in label.figures.items()}
        assert values[Figure.accuracy] == pytest.approx(accuracy_score(truth, said))
        assert values[Figure.sensitivity] == pytest.approx(recall_score(truth, said))
        assert values[Figure.f1] == pytest.approx(f1_score(truth, said))
        assert values[Figure.brier] == pytest.approx(brier_score_loss(truth, probabilities))
        assert values[Figure.auprc] == pytest.approx(label.auprc)
        assert values[Figure.auprc_negative] == pytest.approx(label.auprc_negative)
        for figure, estimate in label.figures.items():
            if estimate.unsaid is not None:
                assert figure in {Figure.ece, Figure.ece_equal_width}
                assert estimate.unsaid is Unsaid.mostly_chance
                continue
            low, high = estimate.ci95
            assert low < estimate.value < high
        assert sum(point.num_images for point in label.reliability) == known.sum()
        weights = [point.num_images / known.sum() for point in label.reliability]
        gaps = [abs(point.observed.value - point.predicted) for point in label.reliability]
        assert values[Figure.ece] == pytest.approx(np.dot(weights, gaps))
        assert label.ece_if_calibrated > 0
    for figure, mean in found.figures.items():
        of_labels = [label.figures[figure].value for label in found.labels]
        assert mean.value == pytest.approx(np.mean(of_labels))


def test_too_few_patients_are_told_of_labels_and_of_their_mean() -> None:
    labels = drawn(FINDINGS, 76)  # of 19 patients
    few = evaluate(scored(FINDINGS, labels), seed=0)
    for figures in (few.figures, *(label.figures for label in few.labels)):
        assert figures[Figure.auprc].unsaid is Unsaid.too_few_patients
        assert figures[Figure.auprc].value is not None
    labels = drawn(FINDINGS, 400)
    labels[:, 0] = np.arange(400) < 4  # one patient has it
    enough = evaluate(scored(FINDINGS, labels), seed=0)
    assert enough.labels[0].figures[Figure.auprc].unsaid is Unsaid.too_few_with_label
    assert enough.figures[Figure.auprc].unsaid is None


def test_thresholds_come_from_the_images_they_were_chosen_on() -> None:
    labels = drawn(FINDINGS)
    labels[:, 2] = 0
    case = scored(FINDINGS, labels)
    expected = [youden_threshold(labels[:, place], case.scores[:, place]) for place in range(3)]
    assert youden_thresholds(case) == tuple(expected)
    assert expected[2] is None
    found = evaluate(replace(case, thresholds=tuple(expected)), seed=0)
    assert found.labels[2].figures[Figure.accuracy].unsaid is Unsaid.not_measured


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


@given(st.permutations(["<20", "20-40", "40-100", "100-120", ">=120", "F", "M", "unknown"]))
def test_values_are_in_order_however_they_come(values: list[str]) -> None:
    assert in_order(values) == ["<20", "20-40", "40-100", "100-120", ">=120", "F", "M", "unknown"]

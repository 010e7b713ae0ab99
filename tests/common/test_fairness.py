"""Fairness by the papers' formulas written out, in redraws too, and what is not said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import recall_score, roc_auc_score

from common.config import TaskKind
from common.estimate import Unsaid
from common.fairness import Fairness, GroupFigures, fairness
from common.redraws import row_counts
from common.reliability import Binned, equal_mass_bins
from common.scored import Scored
from common.task import Task

BINARY = Task(kind=TaskKind.binary, names=("mass",))
FINDINGS = Task(kind=TaskKind.multilabel, names=("mass", "edema", "hernia"))
AGES = ("0-30", "30-60", "60-70", "70-80", "80-100")

Rows = NDArray[np.intp]


def scored(task: Task = BINARY, num_patients: int = 300, **changes: object) -> Scored:
    """Two images a patient; the model is worse for men and for some ages."""
    rng = np.random.default_rng(7)
    patients = np.repeat(np.arange(num_patients), 2)
    labels = rng.integers(2, size=(patients.size, len(task.names)))
    noise = 1 + (patients % 2) + 0.3 * (patients % 5)
    logits = 2 * labels - 1 + noise[:, None] * rng.normal(size=labels.shape)
    facts: dict[str, object] = {
        "labels": labels[:, 0] if task is BINARY else labels,
        "scores": 1 / (1 + np.exp(-logits)),
        "patients": patients,
        "groups": {
            "sex": np.array(["F", "M"])[patients % 2],
            "age": np.array(AGES)[patients % 5],
        },
        "thresholds": (0.4, 0.5, 0.6)[: len(task.names)],
    }
    return Scored(task=task, **(facts | changes))


def group(found: Fairness, value: str) -> GroupFigures:
    (one,) = [one for one in found.groups if one.value == value]
    return one


def accuracy(case: Scored, rows: Rows, place: int = 0) -> float:
    said = case.scores[rows, place] >= case.thresholds[place]
    return float((said == (case.targets[rows, place] == 1)).mean())


def missed(case: Scored, rows: Rows, place: int = 0) -> float:
    said = case.scores[rows, place] >= case.thresholds[place]
    return 1 - float(recall_score(case.targets[rows, place], said))


def false_alarms(case: Scored, rows: Rows, place: int = 0) -> float:
    said = case.scores[rows, place] >= case.thresholds[place]
    return 1 - float(recall_score(case.targets[rows, place], said, pos_label=0))


def ranked(case: Scored, rows: Rows, place: int = 0) -> float:
    return float(roc_auc_score(case.targets[rows, place], case.scores[rows, place]))


def paper_spd(case: Scored, column: str, value: str, rows: Rows, place: int = 0) -> float:
    """``Acc_g - sum n_h Acc_h / sum n_h`` over the other groups h, as the paper has it."""
    own = rows[case.groups[column][rows] == value]
    others = [one for one in np.unique(case.groups[column]) if one not in {value, "unknown"}]
    parts = [rows[case.groups[column][rows] == one] for one in others]
    weighted = sum(part.size * accuracy(case, part, place) for part in parts if part.size)
    return accuracy(case, own, place) - weighted / sum(part.size for part in parts)


def redrawn_interval(case: Scored, figure: Callable[[Rows], float], seed: int) -> list[float]:
    """With repeated rows, one redraw after the other."""
    found = [figure(rows) for rows in redraws(case, seed)]
    return np.quantile(found, (0.025, 0.975)).tolist()


def redraws(case: Scored, seed: int) -> list[Rows]:
    """The rows of the first hundred redraws."""
    rows = np.arange(len(case.labels))
    return [np.repeat(rows, counts) for counts in next(row_counts(case.patients, seed=seed))]


def test_spd_by_sex_is_the_accuracy_of_women_minus_that_of_men() -> None:
    case = scored()
    found = fairness(case, seed=1)["sex"].labels[0]
    rows = np.arange(len(case.labels))
    women, men = (rows[case.groups["sex"] == value] for value in "FM")
    gap = accuracy(case, women) - accuracy(case, men)
    assert gap > 0.05
    assert group(found, "F").spd.value == pytest.approx(gap)
    assert group(found, "M").spd.value == pytest.approx(-gap)
    assert group(found, "F").accuracy.value == pytest.approx(accuracy(case, women))
    assert found.gaps.accuracy.value == pytest.approx(gap)
    assert group(found, "F").support.num_patients == 150


def test_spd_by_age_is_the_papers_formula_in_every_redraw() -> None:
    case = scored()
    found = fairness(case, seed=2, num_redraws=100)["age"].labels[0]
    rows = np.arange(len(case.labels))
    for value in AGES:
        spd = group(found, value).spd
        assert spd.value == pytest.approx(paper_spd(case, "age", value, rows))
    expected = redrawn_interval(case, lambda drawn: paper_spd(case, "age", AGES[1], drawn), 2)
    assert group(found, AGES[1]).spd.ci95 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "difference", "figure"),
    [
        ("false_negative_rate", "false_negative_rate_difference", missed),
        ("false_positive_rate", "false_positive_rate_difference", false_alarms),
        ("auroc", "auroc_difference", ranked),
    ],
)
def test_rates_and_aurocs_by_group(
    name: str, difference: str, figure: Callable[[Scored, Rows], float]
) -> None:
    case = scored(num_patients=120)
    found = group(fairness(case, seed=3, num_redraws=100)["sex"].labels[0], "F")

    def women(rows: Rows) -> Rows:
        return rows[case.groups["sex"][rows] == "F"]

    def apart(rows: Rows) -> float:
        return figure(case, women(rows)) - figure(case, np.setdiff1d(rows, women(rows)))

    def apart_drawn(rows: Rows) -> float:
        men = rows[case.groups["sex"][rows] == "M"]
        return figure(case, women(rows)) - figure(case, men)

    everyone = np.arange(len(case.labels))
    assert getattr(found, name).value == pytest.approx(figure(case, women(everyone)))
    assert getattr(found, difference).value == pytest.approx(apart(everyone))
    expected = redrawn_interval(case, lambda rows: figure(case, women(rows)), 3)
    assert getattr(found, name).ci95 == pytest.approx(expected)
    assert getattr(found, difference).ci95 == pytest.approx(redrawn_interval(case, apart_drawn, 3))


def test_gaps_are_from_the_worst_group_to_the_best() -> None:
    case = scored()
    gaps = fairness(case, seed=4, num_redraws=100)["age"].labels[0].gaps
    everyone = np.arange(len(case.labels))

    def ranges(rows: Rows) -> dict[str, float]:
        parts = [rows[case.groups["age"][rows] == value] for value in AGES]
        spread = {
            name: float(np.ptp([figure(case, part) for part in parts]))
            for name, figure in (
                ("accuracy", accuracy),
                ("auroc", ranked),
                ("false_negative_rate", missed),
                ("false_alarms", false_alarms),
            )
        }
        odds = max(spread["false_negative_rate"], spread.pop("false_alarms"))
        return spread | {"equalised_odds": odds}

    drawn = [ranges(rows) for rows in redraws(case, 4)]
    for name, value in ranges(everyone).items():
        assert getattr(gaps, name).value == pytest.approx(value)
        expected = np.quantile([one[name] for one in drawn], (0.025, 0.975)).tolist()
        assert getattr(gaps, name).ci95 == pytest.approx(expected)


def test_calibration_by_group() -> None:
    case = scored()
    for one in fairness(case, seed=5)["sex"].labels[0].groups:
        rows = case.groups["sex"] == one.value
        scores, positive = case.scores[rows, 0], case.labels[rows] == 1
        assert one.calibration_gap.value == pytest.approx(scores.mean() - positive.mean())
        alone = Binned.of(np.arange(scores.size), positive, scores, equal_mass_bins(scores))
        (expected,) = alone.errors(np.ones((1, scores.size), dtype=np.int64))
        assert one.ece.value == pytest.approx(expected)
        assert one.ece_if_calibrated == pytest.approx(alone.error_if_calibrated)


def test_the_mean_over_labels_is_that_of_labels_with_enough_patients_everywhere() -> None:
    case = scored(FINDINGS)
    labels = case.labels.copy()
    women = case.groups["sex"] == "F"
    labels[women, 2] = 0
    labels[np.flatnonzero(women)[:18], 2] = 1  # nine women have it, many men
    case = replace(case, labels=labels)
    found = fairness(case, seed=6, num_redraws=100)["sex"]
    hernia = group(found.labels[2], "F")
    assert hernia.false_negative_rate.unsaid is Unsaid.too_few_with_label
    assert hernia.false_negative_rate.value is None
    assert hernia.accuracy.value is not None
    assert group(found.labels[2], "M").false_negative_rate.value is not None
    assert found.mean is not None
    rows = np.arange(len(labels))
    for value in "FM":
        own = rows[case.groups["sex"] == value]
        mean = group(found.mean, value)
        assert mean.accuracy.value == pytest.approx(
            np.mean([accuracy(case, own, place) for place in range(3)])
        )
        assert mean.false_negative_rate.value == pytest.approx(
            np.mean([missed(case, own, place) for place in range(2)])
        )
        assert mean.support is None
        drawn = [
            np.mean([missed(case, some[case.groups["sex"][some] == value], p) for p in range(2)])
            for some in redraws(case, 6)
        ]
        expected = np.quantile(drawn, (0.025, 0.975)).tolist()
        assert mean.false_negative_rate.ci95 == pytest.approx(expected)
    assert found.mean.to_dict()["labels"]["sensitivity"] == ["mass", "edema"]
    assert found.mean.to_dict()["labels"]["accuracy"] == ["mass", "edema", "hernia"]
    spds = [group(one, "F").spd.value for one in found.labels]
    assert group(found.mean, "F").spd.value == pytest.approx(np.mean(spds))


def test_small_groups_are_not_told_and_spoil_nothing() -> None:
    case = scored()
    scanner = np.where(case.patients < 150, "old", "new").astype("<U7")
    scanner[case.patients >= 281] = "tiny"
    told = fairness(replace(case, groups={"scanner": scanner}), seed=1)["scanner"].labels[0]
    tiny = group(told, "tiny")
    assert tiny.support.num_patients == 19
    figures = {name for name in GroupFigures.__slots__ if name not in {"value", "support"}}
    for name in figures - {"ece_if_calibrated"}:
        found = getattr(tiny, name)
        assert (found.value, found.ci95) == (None, None)
        assert found.unsaid is Unsaid.too_few_patients
    rows = np.arange(len(case.labels))
    expected = paper_spd(replace(case, groups={"scanner": scanner}), "scanner", "old", rows)
    assert group(told, "old").spd.value == pytest.approx(expected)
    pair = [accuracy(case, rows[scanner == value]) for value in ("old", "new")]
    assert told.gaps.accuracy.value == pytest.approx(abs(pair[0] - pair[1]))


def test_the_unknown_are_compared_with_the_known_and_nobody_with_them() -> None:
    case = scored()
    sex = np.where(case.patients % 3 == 0, "unknown", case.groups["sex"])
    found = fairness(replace(case, groups={"sex": sex}), seed=1)["sex"].labels[0]
    rows = np.arange(len(case.labels))
    women, men = (accuracy(case, rows[sex == value]) for value in "FM")
    assert group(found, "F").spd.value == pytest.approx(women - men)
    assert found.gaps.accuracy.value == pytest.approx(abs(women - men))
    assert group(found, "unknown").accuracy.value is not None


def test_one_group_cannot_be_compared() -> None:
    case = scored()
    site = np.full(len(case.labels), "here")
    found = fairness(replace(case, groups={"site": site}), seed=1)["site"].labels[0]
    (alone,) = found.groups
    assert alone.accuracy.value is not None
    assert alone.spd.unsaid is Unsaid.too_few_patients
    assert found.gaps.equalised_odds.unsaid is Unsaid.not_measured


def test_without_a_threshold_only_what_needs_none_is_told() -> None:
    found = fairness(scored(thresholds=()), seed=1)["sex"].labels[0]
    women = group(found, "F")
    assert women.spd.unsaid is Unsaid.not_measured
    assert women.auroc.unsaid is None
    assert found.gaps.equalised_odds.unsaid is Unsaid.not_measured
    assert found.gaps.auroc.value is not None


def test_nobody_missed_is_no_certainty() -> None:
    case = scored()
    found = group(fairness(replace(case, thresholds=(0.0,)), seed=1)["sex"].labels[0], "F")
    assert found.false_negative_rate.value == 0
    assert found.false_negative_rate.ci95 is None
    assert found.false_negative_rate.unsaid is Unsaid.no_spread


@pytest.mark.parametrize("column", ["sex", "age"])
def test_groups_that_are_treated_alike_are_mostly_found_alike(column: str) -> None:
    """Of 60 studies without any unfairness, about 1 in 20 signed intervals leaves 0 out."""
    rng = np.random.default_rng(8)
    apart = total = 0
    for study in range(60):
        case = scored(num_patients=150)
        labels = rng.integers(2, size=300)
        scores = 1 / (1 + np.exp(-(2 * labels - 1 + 1.5 * rng.normal(size=300))))
        case = replace(case, labels=labels, scores=scores[:, None], thresholds=(0.5,))
        found = fairness(case, seed=study, num_redraws=200)[column].labels[0]
        for one in found.groups:
            if one.spd.ci95 is not None:
                total += 1
                apart += not one.spd.ci95[0] <= 0 <= one.spd.ci95[1]
    assert total >= 120
    assert 0.005 <= apart / total <= 0.12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_nothing_raises_and_all_is_plain_json(seed: int, num_images: int) -> None:
    rng = np.random.default_rng(seed)
    task = (BINARY, FINDINGS)[seed % 2]
    labels = rng.integers(-1, 2, size=(num_images, len(task.names)))
    case = scored(
        task,
        labels=np.maximum(labels, 0)[:, 0] if task is BINARY else labels,
        scores=rng.random((num_images, len(task.names))).round(1),
        patients=rng.integers(40, size=num_images),
        groups={"site": rng.choice(["a", "b", "unknown"], size=num_images)},
    )
    for column in fairness(case, seed=0, num_redraws=20).values():
        text = json.dumps(column.to_dict(), allow_nan=False)
        assert json.loads(text) == column.to_dict()

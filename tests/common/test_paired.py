"""Arms compared on shared redraws: by hand, by what cancels, by how often they are right."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from common.config import TaskKind
from common.estimate import Unsaid
from common.figures import Figure
from common.paired import PAIRED, Arm, Difference, difference
from common.redraws import row_counts
from common.scored import Scored
from common.task import Task

BINARY = Task(kind=TaskKind.binary, names=("mass",))
FINDINGS = Task(kind=TaskKind.multilabel, names=("mass", "edema"))
AUROC = Figure.auroc


def run(rng: np.random.Generator, shift: float, *, num_patients: int = 60) -> Scored:
    """Two images a patient; ``shift`` is how far ill patients score above others."""
    patients = np.repeat(np.arange(num_patients), 2)
    labels = patients % 2
    logits = shift * labels - 0.5 * shift + rng.normal(size=labels.size)
    return Scored(
        task=BINARY,
        labels=labels,
        scores=1 / (1 + np.exp(-logits[:, None])),
        patients=patients,
        thresholds=(0.5,),
    )


def two_arms(seed: int = 0) -> tuple[dict[int, Scored], dict[int, Scored]]:
    rng = np.random.default_rng(seed)
    return {s: run(rng, 1.6) for s in (1, 2, 3)}, {s: run(rng, 1.0) for s in (1, 2, 3)}


def compared(
    a: dict[int, Scored], b: dict[int, Scored], num_redraws: int = 100
) -> dict[Figure, Difference]:
    arms = [Arm.of(runs, seed=5, num_redraws=num_redraws) for runs in (a, b)]
    return difference(arms[0], arms[1])


@pytest.mark.parametrize(
    ("figure", "oracle"),
    [(AUROC, roc_auc_score), (Figure.auprc, average_precision_score)],
)
def test_differences_are_taken_redraw_by_redraw(figure: Figure, oracle: object) -> None:
    a, b = two_arms()
    found = compared(a, b)[figure]
    patients, labels = a[1].patients, a[1].labels

    def means(rows: np.ndarray) -> float:
        each = [
            np.mean([oracle(labels[rows], one.scores[rows, 0]) for one in runs.values()])
            for runs in (a, b)
        ]
        return each[0] - each[1]

    everyone = np.arange(labels.size)
    drawn = [means(np.repeat(everyone, counts)) for counts in next(row_counts(patients, seed=5))]
    assert found.value == pytest.approx(means(everyone))
    assert found.patients is not None
    assert found.patients.ci95 == pytest.approx(np.quantile(drawn, (0.025, 0.975)).tolist())
    assert found.patients.share_not_better == np.mean(np.array(drawn) <= 0)
    tail = min(np.sum(np.array(drawn) <= 0), np.sum(np.array(drawn) >= 0))
    assert found.patients.p_two_sided == pytest.approx(min(1, 2 * (tail + 1) / 101))


def test_of_errors_less_is_better() -> None:
    a, b = two_arms()
    found = compared(a, b)
    assert found[AUROC].value > 0.05
    assert found[AUROC].patients.share_not_better < 0.05
    assert found[Figure.brier].value < -0.02
    assert found[Figure.brier].patients.share_not_better < 0.05
    back = compared(b, a)
    assert back[Figure.brier].patients.share_not_better > 0.95
    for figure in PAIRED:
        assert back[figure].value == pytest.approx(-found[figure].value)


def test_a_run_against_itself_is_no_better_in_any_redraw() -> None:
    a, _ = two_arms()
    for found in compared(a, a).values():
        assert found.value == 0
        assert found.patients.ci95 is None
        assert found.patients.share_not_better == 1
        assert found.patients_and_seeds.p_two_sided == 1


def test_the_same_seeds_are_redrawn_together_and_others_apart() -> None:
    """Arms that differ by a constant at every seed: chance in training cancels in pairs alone."""
    rng = np.random.default_rng(1)
    base = {s: run(rng, shift) for s, shift in ((1, 0.2), (2, 1.0), (3, 2.2))}
    same = compared(base, base)[AUROC]
    other = compared(base, {s + 10: one for s, one in base.items()})[AUROC]
    assert same.seeds_paired
    assert not other.seeds_paired
    assert same.patients_and_seeds.ci95 is None
    low, high = other.patients_and_seeds.ci95
    assert high - low > 0.2
    assert other.patients.ci95 is None


def test_the_order_of_runs_does_not_matter() -> None:
    a, b = two_arms()
    backwards = dict(reversed(a.items()))
    assert compared(a, b) == compared(backwards, b)


def test_one_run_has_no_interval_over_seeds() -> None:
    a, b = two_arms()
    single = compared({1: a[1]}, b)[AUROC]
    assert single.patients is not None
    assert single.patients_and_seeds is None
    summary = Arm.of({1: a[1]}, seed=5).summary()[AUROC]
    assert summary.standard_deviation is None
    assert summary.patients_and_seeds is None


def test_a_summary_has_every_seed_and_their_spread() -> None:
    a, _ = two_arms()
    found = Arm.of(a, seed=5).summary()[AUROC]
    aurocs = {s: roc_auc_score(one.labels, one.scores[:, 0]) for s, one in a.items()}
    assert found.by_seed == pytest.approx(aurocs)
    assert found.patients.value == pytest.approx(np.mean(list(aurocs.values())))
    assert found.standard_deviation == pytest.approx(np.std(list(aurocs.values()), ddof=1))
    json.dumps(found.to_dict(), allow_nan=False)


def test_labels_are_averaged_in_every_redraw() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(-1, 2, size=(80, 2))
    patients = np.arange(80)

    def answers() -> Scored:
        scores = rng.random((80, 2))
        return Scored(task=FINDINGS, labels=labels, scores=scores, patients=patients)

    a, b = answers(), answers()
    found = compared({1: a}, {1: b})
    rows = [labels[:, place] >= 0 for place in range(2)]
    means = [
        np.mean([roc_auc_score(labels[r, p], one.scores[r, p]) for p, r in enumerate(rows)])
        for one in (a, b)
    ]
    assert found[AUROC].value == pytest.approx(means[0] - means[1])
    assert found[Figure.f1].value is None  # there is no threshold
    assert found[Figure.f1].unsaid is Unsaid.not_measured
    json.dumps([one.to_dict() for one in found.values()], allow_nan=False)


def test_too_few_patients_are_told() -> None:
    rng = np.random.default_rng(3)
    few = {1: run(rng, 1.0, num_patients=18)}
    found = compared(few, {1: run(rng, 1.0, num_patients=18)})[AUROC]
    assert found.unsaid is Unsaid.too_few_patients
    assert Arm.of(few, seed=1).summary()[AUROC].patients.unsaid is Unsaid.too_few_patients


def test_other_test_sets_and_other_redraws_are_refused() -> None:
    a, b = two_arms()
    other = {s: replace(one, labels=1 - one.labels) for s, one in b.items()}
    with pytest.raises(ValueError, match="test images differ"):
        compared(a, other)
    regrouped = {s: replace(one, patients=one.patients // 2) for s, one in b.items()}
    with pytest.raises(ValueError, match="test images differ"):
        compared(a, regrouped)
    with pytest.raises(ValueError, match="test images differ"):
        Arm.of({1: a[1], 2: other[2]}, seed=0)
    with pytest.raises(ValueError, match="different redraws"):
        difference(Arm.of(a, seed=0, num_redraws=10), Arm.of(b, seed=1, num_redraws=10))
    with pytest.raises(ValueError, match="at least one"):
        Arm.of({}, seed=0)


@pytest.mark.parametrize(
    ("spread", "fixed", "both"), [(0.0, (0.90, 0.99), (0.94, 1.0)), (0.4, (0.2, 0.75), (0.90, 1.0))]
)
def test_intervals_hold_the_truth_as_often_as_the_docs_say(
    spread: float, fixed: tuple[float, float], both: tuple[float, float]
) -> None:
    """Five runs each of two arms that are equally good; ``spread``: how far training moves one.

    Patients alone do for models as they are; where training itself varies, only the interval that
    redraws runs holds the truth, and it is on the safe side.
    """
    rng = np.random.default_rng(4)
    num_studies, covered = 150, {"fixed": 0, "both": 0}
    for study in range(num_studies):
        runs = [
            {s + offset: run(rng, 1.0 + spread * rng.normal()) for s in range(5)}
            for offset in (0, 100)
        ]
        arms = [Arm.of(one, seed=study, num_redraws=100) for one in runs]
        found = difference(arms[0], arms[1])[AUROC]
        for name, evidence in (("fixed", found.patients), ("both", found.patients_and_seeds)):
            low, high = evidence.ci95
            covered[name] += low <= 0 <= high
    assert fixed[0] <= covered["fixed"] / num_studies <= fixed[1]
    assert both[0] <= covered["both"] / num_studies <= both[1]

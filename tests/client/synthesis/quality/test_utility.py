from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from client.synthesis.quality.utility import Head, Labelled, utility
from common.config import TaskKind
from common.errors import UsageError
from common.task import Task

_BINARY = Task(kind=TaskKind.binary, names=("malignant",))
_THREE = Task(kind=TaskKind.multiclass, names=("a", "b", "c"))


def _drawn(seed: int, count: int, num_classes: int, signal: float = 1.0) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    centres = np.eye(6)[:num_classes] * signal
    features = (centres[labels] + rng.normal(size=(count, 6))) * np.array([1, 9, 1, 1, 1, 1]) + 5
    return Labelled(features=features, labels=labels, patients=np.arange(count) // 2)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_head_is_the_one_that_scikit_learn_finds(num_classes: int) -> None:
    train, test = _drawn(0, 120, num_classes), _drawn(1, 90, num_classes)
    ridge = 0.05
    found = Head.fit(train.features, train.labels, num_classes=num_classes, ridge=ridge)
    scaler = StandardScaler().fit(train.features)
    # Two classes share one vector there: the same optimum at half the penalty.
    strength = 1 / (120 * ridge) * (2 if num_classes == 2 else 1)
    other = LogisticRegression(C=strength, tol=1e-10, max_iter=2000)
    other.fit(scaler.transform(train.features), train.labels)
    expected = other.predict_proba(scaler.transform(test.features))
    assert np.allclose(found.probabilities(test.features), expected, atol=1e-5)


def test_good_images_teach_as_much_as_real_ones_and_noise_teaches_nothing() -> None:
    train, held_out = _drawn(0, 400, 2, 2.0), _drawn(1, 300, 2, 2.0)
    good = utility(_drawn(2, 400, 2, 2.0), train, held_out, task=_BINARY, seed=0)
    assert good.gap_ci95[0] < 0 < good.gap_ci95[1]
    assert good.synthetic_ci95[0] < good.synthetic < good.synthetic_ci95[1]
    bad = utility(_drawn(3, 400, 2, 0.0), train, held_out, task=_BINARY, seed=0)
    assert bad.real == good.real
    assert bad.gap_ci95[0] > 0
    head = LogisticRegression(C=1e6, max_iter=2000)
    head.fit(StandardScaler().fit_transform(train.features), train.labels)
    scores = head.predict_proba(StandardScaler().fit(train.features).transform(held_out.features))
    assert good.real == pytest.approx(roc_auc_score(held_out.labels, scores[:, 1]), abs=0.01)


def test_the_same_images_have_no_gap() -> None:
    train = _drawn(0, 100, 3)
    found = utility(train, train, _drawn(1, 80, 3), task=_THREE, seed=3)
    assert found.synthetic == found.real
    assert found.gap_ci95 == (0.0, 0.0)


def test_what_cannot_be_measured() -> None:
    train, held_out = _drawn(0, 40, 2), _drawn(1, 40, 2)
    one = Labelled(features=train.features[::2], labels=train.labels[::2])
    with pytest.raises(UsageError, match="synthetic images have the classes"):
        utility(one, train, held_out, task=_BINARY, seed=0)
    benign = Labelled(
        features=held_out.features[::2], labels=held_out.labels[::2], patients=np.arange(20)
    )
    nobody = Labelled(features=held_out.features, labels=held_out.labels)
    for wrong in (benign, nobody):
        with pytest.raises(UsageError, match="held-out"):
            utility(train, train, wrong, task=_BINARY, seed=0)
    several = Task(kind=TaskKind.multilabel, names=("a", "b"))
    with pytest.raises(UsageError, match="multi-label"):
        utility(train, train, held_out, task=several, seed=0)

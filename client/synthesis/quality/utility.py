"""What synthetic images teach: train on them, test on real patients."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special

from client.synthesis.quality.images import Features
from common.config import TaskKind
from common.errors import UsageError
from common.evaluation import macro_auroc, usable
from common.redraws import Interval, Ranking, auroc_intervals, row_counts
from common.scored import Scored, targets
from common.task import Task

RIDGE = 0.03
"""Penalty on squared weights: chosen once, on the validation patients of CBIS-DDSM."""

_REDRAWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Utility:
    """AUROC on held-out patients; derived from them. Over several classes: the mean, one to rest.

    Attributes:
        synthetic: Of a head trained on synthetic images alone.
        synthetic_ci95: Patient-bootstrap interval.
        real: Of the same head trained on the training patients.
        real_ci95: Patient-bootstrap interval.
        gap_ci95: Of ``real - synthetic``, from shared redraws of the held-out patients.
    """

    synthetic: float
    synthetic_ci95: Interval
    real: float
    real_ci95: Interval
    gap_ci95: Interval


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Head:
    """Logistic regression on z-scored features.

    Attributes:
        centre: (d,) of the features it was trained on.
        spread: (d,) likewise, 1 where a feature was constant.
        weights: (C, d).
        bias: (C,).
    """

    centre: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        features: Features,
        labels: npt.NDArray[np.int64],
        *,
        num_classes: int,
        ridge: float = RIDGE,
    ) -> Head:
        """Minimises ``mean cross entropy + ridge / 2 |weights|^2``, a convex problem (L-BFGS).

        Args:
            features: (n, d), finite.
            labels: (n,) from 0 to ``num_classes`` - 1.
            num_classes: C.
            ridge: Above 0.
        """
        centre, spread = features.mean(axis=0), features.std(axis=0)
        spread = np.where(spread > 1e-9 * np.maximum(1.0, np.abs(centre)), spread, 1.0)
        inputs = (features - centre) / spread
        wanted = (labels[:, None] == np.arange(num_classes)).astype(np.float64)
        num_features = features.shape[1]

        def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            weights, bias = np.split(flat.reshape(num_classes, -1), [num_features], axis=1)
            logs = scipy.special.log_softmax(inputs @ weights.T + bias[:, 0], axis=1)
            errors = (np.exp(logs) - wanted) / len(inputs)
            slopes = np.hstack([errors.T @ inputs + ridge * weights, errors.sum(axis=0)[:, None]])
            value = -(logs * wanted).sum() / len(inputs) + ridge / 2 * (weights**2).sum()
            return float(value), slopes.ravel()

        start = np.zeros(num_classes * (num_features + 1))
        options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-7}
        found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
        weights, bias = np.split(found.x.reshape(num_classes, -1), [num_features], axis=1)
        return cls(centre=centre, spread=spread, weights=weights, bias=bias[:, 0])

    def probabilities(self, features: Features) -> npt.NDArray[np.float64]:
        """(n, C) of (n, d) features."""
        inputs = (features - self.centre) / self.spread
        return scipy.special.softmax(inputs @ self.weights.T + self.bias, axis=1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labelled:
    """Features of images with their classes.

    Attributes:
        features: (n, d).
        labels: (n,).
        patients: (n,) whose image it is; of synthetic images nobody's.
    """

    features: Features = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    patients: npt.NDArray[np.int64] | None = field(default=None, repr=False)


def utility(
    synthetic: Labelled, train: Labelled, held_out: Labelled, *, task: Task, seed: int
) -> Utility:
    """Trains one head on synthetic and one on real images, and tests both on held-out patients.

    Nothing is chosen on these patients: the penalty is `RIDGE`, and z-scores are those of the
    images that a head is trained on.

    Args:
        synthetic: To train on.
        train: To train the reference on.
        held_out: To test on, with ``patients``; none of them is in ``train``.
        task: What the labels mean; not multi-label.
        seed: Decides the redraws.

    Raises:
        UsageError: The task is multi-label, a set to train on lacks a class, or the held-out
            images cannot measure a model.
    """
    if task.kind is TaskKind.multilabel:
        raise UsageError("train on synthetic, test on real: not for a multi-label task")
    patients = held_out.patients
    if patients is None:
        raise UsageError("held-out images: whose they are is not given")
    if not usable(task, held_out.labels, patients):
        raise UsageError(
            f"{len(held_out.labels)} held-out images of {np.unique(patients).size} patients cannot "
            "measure a model: two patients and both classes are needed"
        )
    scored: list[Scored] = []
    for name, one in (("synthetic", synthetic), ("training", train)):
        present = np.unique(one.labels)
        if present.tolist() != list(range(task.num_outputs)):
            raise UsageError(
                f"{name} images have the classes {present.tolist()}; each of 0 to "
                f"{task.num_outputs - 1} is needed, and no other"
            )
        head = Head.fit(one.features, one.labels, num_classes=task.num_outputs)
        found = head.probabilities(held_out.features)
        scores = found[:, 1:] if task.kind is TaskKind.binary else found
        scored.append(Scored(task=task, labels=held_out.labels, scores=scores, patients=patients))
    return _compared(scored[0], scored[1], seed=seed)


def _compared(synthetic: Scored, real: Scored, *, seed: int) -> Utility:
    points = [macro_auroc(one) for one in (synthetic, real)]
    assert points[0] is not None
    assert points[1] is not None
    rankings = [_rankings(one) for one in (synthetic, real)]
    patients = real.patients
    intervals = [auroc_intervals(one, patients, seed=seed).macro for one in rankings]
    return Utility(
        synthetic=points[0],
        synthetic_ci95=intervals[0],
        real=points[1],
        real_ci95=intervals[1],
        gap_ci95=_gap(rankings[0], rankings[1], patients, seed=seed),
    )


def _rankings(scored: Scored) -> list[Ranking]:
    columns = zip(targets(scored.task, scored.labels).T, scored.scores.T, strict=True)
    rankings = [Ranking.of(labels, scores) for labels, scores in columns]
    return [ranking for ranking in rankings if ranking.has_both_classes]


def _gap(
    synthetic: list[Ranking], real: list[Ranking], patients: npt.NDArray[np.int64], *, seed: int
) -> Interval:
    """Interval of the difference of the mean AUROCs, over redraws that have one."""
    found: list[npt.NDArray[np.float64]] = []
    for counts in row_counts(patients, seed=seed):
        pair = [np.stack([one.aurocs(counts) for one in group]) for group in (synthetic, real)]
        some = np.isfinite(pair[0]).any(axis=0)
        gaps = np.nanmean(pair[1][:, some], axis=0) - np.nanmean(pair[0][:, some], axis=0)
        found.append(gaps)
        if sum(map(len, found)) >= _REDRAWS:
            break
    low, high = np.quantile(np.concatenate(found)[:_REDRAWS], (0.025, 0.975))
    return float(low), float(high)

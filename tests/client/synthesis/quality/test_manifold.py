from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from client.synthesis.quality import neighbours
from client.synthesis.quality.manifold import PrecisionRecall, precision_recall
from client.synthesis.quality.neighbours import radii
from common.errors import UsageError


def _reference(real: np.ndarray, fake: np.ndarray, k: int) -> PrecisionRecall:
    def inside(queries: np.ndarray, points: np.ndarray) -> float:
        reach = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()[0][:, -1]
        apart = np.linalg.norm(queries[:, None] - points[None], axis=2)
        return float((apart <= reach).any(axis=1).mean())

    return PrecisionRecall(precision=inside(fake, real), recall=inside(real, fake))


@pytest.mark.parametrize("at_once", [1, 130, 1 << 22])
def test_equals_a_plain_computation_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(neighbours, "_NUMBERS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(60, 3)), rng.normal(size=(43, 3)) * 0.6 + 0.5
    found = precision_recall(real, fake, k=3)
    assert found == _reference(real, fake, 3)
    assert 0 < found.recall < found.precision < 1


def test_identical_and_far_sets() -> None:
    points = np.random.default_rng(0).normal(size=(50, 8)) + 1e4
    assert precision_recall(points, points) == PrecisionRecall(precision=1, recall=1)
    assert precision_recall(points, points + 99) == PrecisionRecall(precision=0, recall=0)


def test_one_mode_of_two_is_precise_and_forgets_half() -> None:
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 50])
    found = precision_recall(real, rng.normal(size=(200, 2)))
    assert found.precision > 0.9
    assert 0.4 < found.recall <= 0.5


def test_equal_images_have_balls_of_no_size_that_hold_them() -> None:
    rng = np.random.default_rng(0)
    points = np.repeat(rng.normal(size=(5, 8)) + 1e3, 6, axis=0)
    assert radii(points, 3).max() < 1e-4
    assert precision_recall(points, points) == PrecisionRecall(precision=1, recall=1)


@pytest.mark.parametrize("k", [0, 4])
def test_k_out_of_bounds(k: int) -> None:
    with pytest.raises(UsageError, match="k="):
        precision_recall(np.zeros((9, 2)), np.zeros((4, 2)), k=k)

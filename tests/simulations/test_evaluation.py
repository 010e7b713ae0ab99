"""Scores of real models on held-out cohorts of every kind, read from disk a batch at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from client.data.cohort import Cohort
from common import models
from common.config import FinetuneConfig, ModelConfig, TaskKind
from common.errors import UsageError
from common.scored import targets
from common.task import Task
from common.thresholds import youden_threshold
from simulations.evaluation import HeldOut

BINARY = Task(kind=TaskKind.binary, names=("malignant",))
CLASSES = Task(kind=TaskKind.multiclass, names=("normal", "bacterial", "viral"))
FINDINGS = Task(kind=TaskKind.multilabel, names=("mass", "edema", "hernia", "nodule"))
DEPTH = 3


def built(task: Task, depth: int | None = None) -> nn.Module:
    return models.build(
        ModelConfig(architecture="test_vit", patch_size=16),
        FinetuneConfig(),
        image_size=32,
        num_classes=task.num_outputs,
        seed=1,
        depth=depth,
    )


def labels_of(task: Task, num_images: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(0)
    if task.kind is TaskKind.multilabel:
        return rng.integers(-1, 2, size=(num_images, len(task.names)))
    return rng.integers(max(2, len(task.names)), size=num_images)


def cohort_of(task: Task, depth: int | None = None, num_images: int = 200) -> Cohort:
    shape = (1, 32, 32) if depth is None else (1, depth, 32, 32)
    rng = np.random.default_rng(3)
    return Cohort(
        images=rng.random((num_images, *shape), dtype=np.float32),
        labels=labels_of(task, num_images),
        patients=np.arange(num_images) // 2,
        num_patients=num_images // 2,
        patient_ids=(),
        groups={"sex": np.where(np.arange(num_images) % 4 < 2, "F", "M")},
    )


def logits_one_by_one(model: nn.Module, cohort: Cohort) -> Tensor:
    images = torch.from_numpy(np.array(cohort.images)) * 2 - 1
    with torch.inference_mode():
        return torch.cat([model.eval()(image[None]) for image in images]).double()


@pytest.mark.parametrize("depth", [None, DEPTH])
@pytest.mark.parametrize("task", [BINARY, CLASSES, FINDINGS])
def test_scores_are_the_probabilities_of_the_names(task: Task, depth: int | None) -> None:
    model, cohort = built(task, depth), cohort_of(task, depth)
    logits = logits_one_by_one(model, cohort)
    expected = {
        TaskKind.binary: (logits[:, 1:] - logits[:, :1]).sigmoid(),
        TaskKind.multiclass: logits.exp() / logits.exp().sum(1, keepdim=True),
        TaskKind.multilabel: 1 / (1 + (-logits).exp()),
    }[task.kind]
    found = HeldOut(model, task, cohort).scores(models.trainable_weights(model))
    assert found.shape == (200, len(task.names))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_figures_are_those_of_the_weights_that_are_asked_about() -> None:
    model, cohort = built(BINARY), cohort_of(BINARY)
    held_out = HeldOut(model, BINARY, cohort)
    first = models.trainable_weights(model)
    second = {name: -weight for name, weight in first.items()}
    figures = [held_out.auroc(weights) for weights in (first, second, first)]
    assert figures[0] == figures[2] != figures[1]
    scores = held_out.scores(second)[:, 0]
    assert figures[1] == pytest.approx(roc_auc_score(cohort.labels, scores))
    evaluation = held_out.evaluate(second, seed=3)
    assert evaluation.macro.auroc == figures[1]
    assert set(evaluation.groups["sex"]) == {"F", "M"}


@pytest.mark.parametrize("task", [BINARY, CLASSES, FINDINGS])
def test_thresholds_are_chosen_on_the_other_cohort_by_the_same_weights(task: Task) -> None:
    model = built(task)
    cohort, others = cohort_of(task), cohort_of(task, num_images=120)
    validation = HeldOut(model, task, others)
    test = HeldOut(model, task, cohort, thresholds_from=validation)
    first = models.trainable_weights(model)
    second = {name: -weight for name, weight in first.items()}
    for weights in (first, second, first):
        scored = test.scored(weights)
        answers = targets(task, others.labels)
        scores = validation.scores(weights)
        expected = [
            youden_threshold(answers[:, place], scores[:, place])
            for place in range(len(task.names))
        ]
        assert scored.thresholds == tuple(expected)
        np.testing.assert_array_equal(scored.scores, test.scores(weights))
    assert HeldOut(model, task, cohort).scored(first).thresholds == ()


class CountsSlices(nn.Module):
    """Remembers how many slices it saw at once."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images[:, 0].flatten(0, -3).shape[0])
        return self.weight * images.flatten(1)[:, :2]


@pytest.mark.parametrize("depth", [None, 16, 500])
def test_a_batch_holds_so_many_slices_not_so_many_volumes(depth: int | None) -> None:
    model = CountsSlices()
    cohort = cohort_of(BINARY, depth, num_images=150)
    cohort = replace(cohort, images=np.ascontiguousarray(cohort.images[..., :4, :4]))
    scores = HeldOut(model, BINARY, cohort).scores({"weight": np.ones(1, dtype=np.float32)})
    assert scores.shape == (150, 1)
    assert sum(model.seen) == 150 * (depth or 1)
    assert max(model.seen) == max(128, depth or 1)


def test_a_read_only_map_is_scored_without_a_word(tmp_path: Path) -> None:
    """Warnings are errors here: torch complains about arrays that cannot be written."""
    model, cohort = built(BINARY), cohort_of(BINARY)
    np.save(tmp_path / "images.npy", cohort.images)
    mapped = replace(cohort, images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    weights = models.trainable_weights(model)
    np.testing.assert_array_equal(
        HeldOut(model, BINARY, mapped).scores(weights),
        HeldOut(model, BINARY, cohort).scores(weights),
    )


def test_validation_images_without_both_classes_give_no_figure() -> None:
    model, cohort = built(BINARY), cohort_of(BINARY)
    healthy = replace(cohort, labels=np.zeros_like(cohort.labels))
    weights = models.trainable_weights(model)
    assert HeldOut(model, BINARY, healthy).auroc(weights) is None


@pytest.mark.parametrize("task", [BINARY, CLASSES, FINDINGS])
def test_a_cohort_that_can_be_measured_passes(task: Task) -> None:
    HeldOut(built(task), task, cohort_of(task)).check("test")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.ones(200, dtype=np.int64)}, r"none of malignant .* data\.test_fraction"),
        ({"patients": np.zeros(200, dtype=np.int64)}, "200 test images"),
        (
            {"groups": {"age": np.arange(200).astype(str)}},
            r"200 values .* data\.columns\.bins\.age",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(
    changes: dict[str, object], words: str
) -> None:
    cohort = replace(cohort_of(BINARY), **changes)
    with pytest.raises(UsageError, match=words) as caught:
        HeldOut(built(BINARY), BINARY, cohort).check("test")
    assert "\n" not in str(caught.value)

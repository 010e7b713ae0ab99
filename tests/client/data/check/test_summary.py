from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from client.data.check.inspection import inspect
from client.data.check.summary import Summary, summarise
from client.data.study import Record
from common.config import TaskKind
from common.task import Task

Make = Callable[..., Record]


def _summary(held_study: Any, records: list[Record], sizes: dict[int, int], **more: Any) -> Summary:
    images = {row: np.full((size, size), row / 10, dtype=np.float32) for row, size in sizes.items()}
    study = held_study(records=tuple(records), images=images, **more)
    return summarise(study, records, inspect(study, records))


def test_counts(make_record: Make, held_study: Any) -> None:
    records = [
        make_record(1, "a", 1, split="train", site="X", groups={"sex": "F"}),
        make_record(2, "a", 0, split="train", site="X", groups={"sex": "F"}),
        make_record(3, "b", 0, split="test", site="Y", groups={"sex": "M"}),
        make_record(4, "c", 0, split="test", groups={}),
    ]
    summary = _summary(held_study, records, {1: 4, 2: 4, 3: 8})
    assert (summary.num_images, summary.num_patients) == (4, 3)
    assert summary.splits == ("train", "test")
    counted = {one.name: (one.images, one.patients, one.by_split) for one in summary.labels}
    assert counted == {"malignant": (1, 1, (1, 0)), "not malignant": (3, 3, (1, 2))}
    groups = {one.name: one.images for one in summary.groups["sex"]}
    assert groups == {"F": 2, "M": 1, "unknown": 1}
    assert {one.name: one.patients for one in summary.sites} == {"X": 1, "Y": 1}
    assert [(one.name, one.images) for one in summary.sizes] == [("4 x 4", 2), ("8 x 8", 1)]
    per_patient, brightness, contrast = summary.histograms
    assert (per_patient.labels, per_patient.counts) == (("1", "2"), (2, 1))
    assert (brightness.counts[2], brightness.counts[4]) == (1, 1)
    assert sum(brightness.counts) == sum(contrast.counts) == 3
    assert contrast.counts[0] == contrast.highest == 3


def test_several_classes_and_findings(make_record: Make, held_study: Any) -> None:
    classes = Task(kind=TaskKind.multiclass, names=("normal", "virus", "bacteria"))
    records = [make_record(1, "a", 2), make_record(2, "b", 0), make_record(3, "c", 2)]
    summary = _summary(held_study, records, {1: 4}, task=classes)
    assert {one.name: one.images for one in summary.labels} == {"bacteria": 2, "normal": 1}
    findings = Task(kind=TaskKind.multilabel, names=("mass", "edema"))
    records = [
        make_record(1, "a", 1, 1),
        make_record(2, "b", 0, -1),
        make_record(3, "c", 0, 0),
    ]
    summary = _summary(held_study, records, {1: 4}, task=findings)
    assert {one.name: one.images for one in summary.labels} == {
        "mass": 1,
        "edema": 1,
        "edema: unknown": 1,
        "none of them": 2,
    }


def test_patients_with_very_many_images_share_the_last_bar(
    make_record: Make, held_study: Any
) -> None:
    records = [make_record(row, "a" if row <= 50 else "b") for row in range(1, 75)]
    summary = _summary(held_study, records, {1: 4})
    assert summary.histograms[0].counts[-1] == 2
    assert summary.histograms[0].labels[-1] == "20+"

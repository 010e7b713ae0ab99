from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.cohort import load_cohort
from client.data.study import ImageKind, Record
from common.config import TaskKind
from common.errors import DataError
from common.task import Task

_TASK = Task(kind=TaskKind.binary, names=("finding",))


@dataclass(frozen=True, kw_only=True, slots=True)
class RowStudy:
    """A study whose image of row r is (r, 2 r) pixels of brightness r / 100."""

    records: tuple[Record, ...]
    name: str = "rows"
    task: Task = _TASK
    image_kind: ImageKind = ImageKind.image

    def read(self, record: Record) -> npt.NDArray[np.float32]:
        return np.full((record.row, 2 * record.row), record.row / 100, dtype=np.float32)


def _study(patients: list[int]) -> RowStudy:
    records = tuple(
        Record(row=row, path=Path("x"), patient=f"p{number}", labels=(number % 2,))
        for row, number in enumerate(patients, start=1)
    )
    return RowStudy(records=records)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_images_labels_and_patients_belong_together_in_any_order(
    patients: list[int], random: Random
) -> None:
    study = _study(patients)
    shuffled = list(study.records)
    random.shuffle(shuffled)
    cohort = load_cohort(study, shuffled, image_size=8)
    assert cohort.images.dtype == np.float32
    assert cohort.labels.dtype == cohort.patients.dtype == np.int64
    assert cohort.images.shape == (len(patients), 1, 8, 8)
    assert cohort.num_patients == len(set(patients)) == len(cohort.patient_ids)
    for position, number in enumerate(patients):
        assert np.allclose(cohort.images[position], (position + 1) / 100)
        assert cohort.labels[position] == number % 2
        assert cohort.patient_ids[cohort.patients[position]] == f"p{number}"


def test_a_cohort_without_records_is_refused() -> None:
    with pytest.raises(DataError, match="at least one image"):
        load_cohort(_study([1]), [], image_size=8)


def test_repr_shows_how_many_and_not_who() -> None:
    cohort = load_cohort(_study([1, 1, 2]), _study([1, 1, 2]).records, image_size=8)
    assert repr(cohort) == "Cohort(num_patients=2)"


@pytest.mark.parametrize(
    ("kind", "names", "labels", "expected"),
    [
        (TaskKind.multiclass, ("a", "b", "c"), [(2,), (0,)], [2, 0]),
        (TaskKind.multilabel, ("a", "b"), [(1, -1), (0, 1)], [[1, -1], [0, 1]]),
        (TaskKind.multilabel, ("a",), [(1,), (0,)], [[1], [0]]),
    ],
)
def test_labels_of_each_kind_of_task(
    kind: TaskKind, names: tuple[str, ...], labels: list[tuple[int, ...]], expected: list[object]
) -> None:
    records = tuple(
        Record(
            row=row, path=Path("x"), patient=f"p{row}", labels=label, groups={"sex": "FM"[row - 1]}
        )
        for row, label in enumerate(labels, start=1)
    )
    study = RowStudy(records=records, task=Task(kind=kind, names=names))
    cohort = load_cohort(study, records, image_size=8)
    assert cohort.labels.dtype == np.int64
    assert cohort.labels.tolist() == expected
    assert cohort.groups["sex"].tolist() == ["F", "M"]

from __future__ import annotations

import pytest

from common.config import TaskKind
from common.errors import UsageError
from common.task import Task


@pytest.mark.parametrize(
    ("kind", "names", "outputs", "labels"),
    [
        (TaskKind.binary, ("malignant",), 2, 1),
        (TaskKind.multiclass, ("normal", "bacteria", "virus"), 3, 1),
        (TaskKind.multilabel, ("mass", "nodule", "edema"), 3, 3),
        (TaskKind.multilabel, ("mass",), 1, 1),
    ],
)
def test_outputs_and_labels(
    kind: TaskKind, names: tuple[str, ...], outputs: int, labels: int
) -> None:
    task = Task(kind=kind, names=names)
    assert (task.num_outputs, task.labels_per_image) == (outputs, labels)


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        (TaskKind.binary, (), "needs one name"),
        (TaskKind.binary, ("a", "b"), "needs one name"),
        (TaskKind.multiclass, ("a",), "needs 2 to 1000 names"),
        (TaskKind.multilabel, (), "needs 1 to 1000 names"),
        (TaskKind.multilabel, ("a", "a"), "must differ"),
        (TaskKind.multiclass, ("a", ""), "none may be empty"),
    ],
)
def test_names_that_do_not_fit(kind: TaskKind, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=r"^data\.labels\.names=") as caught:
        Task(kind=kind, names=names)
    assert message in str(caught.value)

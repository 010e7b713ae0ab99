"""What a model is asked about an image: one question, or several (public)."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import TaskKind
from common.errors import UsageError

UNKNOWN = -1
"""The label of a finding that nobody looked for; multi-label tasks only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The kind of label and the words for it.

    Attributes:
        kind: Yes or no, one of several classes, or several findings side by side.
        names: The finding (binary), the classes in the order of their numbers (multi-class) or
            the findings (multi-label).
    """

    kind: TaskKind
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        fewest, most = {
            TaskKind.binary: (1, 1),
            TaskKind.multiclass: (2, 1000),
            TaskKind.multilabel: (1, 1000),
        }[self.kind]
        given = f"data.labels.names={list(self.names)}"
        if not fewest <= len(self.names) <= most:
            needs = "one name" if most == 1 else f"{fewest} to {most} names"
            raise UsageError(f"{given}: a {self.kind.value} task needs {needs}")
        if len(set(self.names)) != len(self.names) or not all(self.names):
            raise UsageError(f"{given}: names must differ, and none may be empty")

    @property
    def num_outputs(self) -> int:
        """Logits of a model for it: two for a binary task, else one for each name.

        >>> Task(kind=TaskKind.binary, names=("malignant",)).num_outputs
        2
        """
        return 2 if self.kind is TaskKind.binary else len(self.names)

    @property
    def labels_per_image(self) -> int:
        """How many numbers label an image: one class number, or one for each finding."""
        return len(self.names) if self.kind is TaskKind.multilabel else 1

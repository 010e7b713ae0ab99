"""`predictions.csv`: what the final model said of each test image, for comparing runs later.

Derived from the test patients, image by image and without noise: it is as public as the study, and
no more. A simulation alone writes it; nothing like it leaves a hospital.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.data.cohort import Cohort
from common.config import TaskKind
from common.errors import UsageError
from common.files import write_atomically
from common.scored import Scored
from common.task import Task

SCHEMA = "fedward.predictions/1"
_NOTE = (
    "Derived from the patients of the test set, without noise and without a guarantee for them; "
    "public only where the study is."
)
_IN_BLOCK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class TestSet:
    """Which images a model was tested on.

    Attributes:
        cases: SHA-256 of labels, whose images they are, and groups.
        images: SHA-256 of the pixels as the model got them.
        shape: of one image.
    """

    __test__ = False  # not a test of pytest

    cases: str
    images: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, cohort: Cohort) -> TestSet:
        """Read every image once, some at a time."""
        cases, images = hashlib.sha256(), hashlib.sha256()
        columns = {name: column.tolist() for name, column in sorted(cohort.groups.items())}
        for part in (cohort.labels.tolist(), cohort.patients.tolist(), columns):
            cases.update(json.dumps(part).encode())
        for start in range(0, len(cohort.images), _IN_BLOCK):
            block = np.ascontiguousarray(cohort.images[start : start + _IN_BLOCK], dtype="<f4")
            images.update(block.tobytes())
        shape = tuple(cohort.images.shape[1:])
        return cls(cases=cases.hexdigest(), images=images.hexdigest(), shape=shape)

    def differs_from(self, other: TestSet) -> str | None:
        """Why runs on the two cannot be compared, ``None`` if they can.

        Images of different sizes have different pixels, so there the cases alone must agree.
        """
        if self.cases != other.cases:
            return "other patients, labels or groups"
        if self.shape == other.shape and self.images != other.images:
            return "other images, or other preprocessing"
        return None

    def to_dict(self) -> dict[str, Any]:
        """As files hold it."""
        return {"cases": self.cases, "images": self.images, "shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """The answers of one run's final model; derived from test patients.

    Attributes:
        test_set: which images.
        seed: of the run.
        scored: answers, truth, groups and thresholds.
    """

    test_set: TestSet
    seed: int
    scored: Scored = field(repr=False)

    def write(self, path: Path, *, public: bool) -> str:
        """Write the file, whole or not at all; returns its SHA-256.

        Args:
            path: ``predictions.csv`` in the run's folder.
            public: whether the study is; if not, only the owner of the folder may read the file.
        """
        scored = self.scored
        task = scored.task
        facts = {
            "schema": SCHEMA,
            "seed": self.seed,
            "task": {"kind": task.kind.value, "names": list(task.names)},
            "groups": list(scored.groups),
            "thresholds": list(scored.thresholds),
            "test_set": self.test_set.to_dict(),
        }
        text = io.StringIO(newline="")
        text.write(f"# {_NOTE}\n# {json.dumps(facts)}\n")
        table = csv.writer(text, lineterminator="\n")
        labels = scored.labels.reshape(len(scored.labels), -1)
        answers = ["label"] if labels.shape[1] == 1 else [f"label:{name}" for name in task.names]
        said = [f"score:{name}" for name in task.names]
        table.writerow(["patient", *answers, *said, *(f"group:{name}" for name in scored.groups)])
        columns = [column.tolist() for column in scored.groups.values()]
        rows = zip(
            scored.patients.tolist(), labels.tolist(), scored.scores.tolist(), *columns, strict=True
        )
        table.writerows([patient, *known, *scores, *own] for patient, known, scores, *own in rows)
        content = text.getvalue().encode()
        write_atomically(path, content, mode=0o644 if public else 0o600)
        return hashlib.sha256(content).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """The file that `write` wrote.

        Raises:
            UsageError: there is none, or it is not such a file.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n", 2)
            facts = json.loads(lines[1].removeprefix("# "))
            if facts["schema"] != SCHEMA:
                raise UsageError(f"{path}: schema {facts['schema']!r}, this version reads {SCHEMA}")
            return cls._parsed(facts, list(csv.reader(io.StringIO(lines[2], newline="")))[1:])
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: not a predictions file of a run ({error})") from error

    @classmethod
    def _parsed(cls, facts: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> Predictions:
        task = Task(kind=TaskKind(facts["task"]["kind"]), names=tuple(facts["task"]["names"]))
        width = 1 + task.labels_per_image + len(task.names) + len(facts["groups"])
        if any(len(row) != width for row in rows):
            raise ValueError(f"rows must have {width} columns")
        labels = np.array([row[1 : 1 + task.labels_per_image] for row in rows], dtype=np.int64)
        end = 1 + task.labels_per_image + len(task.names)
        return cls(
            test_set=TestSet(
                cases=facts["test_set"]["cases"],
                images=facts["test_set"]["images"],
                shape=tuple(facts["test_set"]["shape"]),
            ),
            seed=int(facts["seed"]),
            scored=Scored(
                task=task,
                labels=labels if task.kind is TaskKind.multilabel else labels[:, 0],
                scores=np.array(
                    [row[1 + task.labels_per_image : end] for row in rows], dtype=np.float64
                ),
                patients=np.array([row[0] for row in rows], dtype=np.int64),
                groups={
                    name: np.array([row[end + place] for row in rows])
                    for place, name in enumerate(facts["groups"])
                },
                thresholds=tuple(facts["thresholds"]),
            ),
        )


def same_test_set(found: Mapping[Path, Predictions]) -> None:
    """Refuse runs that were not tested on the same images.

    Args:
        found: by where each lies.

    Raises:
        UsageError: two test sets or tasks differ, in the words of which and how.
    """
    first_path, first = next(iter(found.items()))
    for path, one in found.items():
        why = first.test_set.differs_from(one.test_set)
        if one.scored.task != first.scored.task:
            why = "another task"
        if why is not None:
            raise UsageError(
                f"{first_path} and {path}: tested on different test sets ({why}); runs can be "
                "compared on the same test images only"
            )

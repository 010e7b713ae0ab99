"""A study in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from client.data.check.inspection import ImageFacts
from client.data.study import SPLITS, Record, Study
from common.config import TaskKind
from common.task import UNKNOWN, Task

_BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """How many images and patients are of one kind; a patient may be of several."""

    name: str
    images: int
    patients: int
    by_split: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts between edges: one edge more than counts, or one label for each."""

    title: str
    unit: str
    counts: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def highest(self) -> int:
        """The largest count, at least 1."""
        return max((*self.counts, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Counts of a study; derived from patients, stays at the site.

    Attributes:
        study: Its name.
        kind: ``image`` or ``volume``.
        num_images: Rows.
        num_patients: Persons.
        splits: The parts that the study names, in the order of ``Count.by_split``.
        labels: Images and patients by label.
        groups: By name of the group, its values.
        sites: By hospital of the study.
        sizes: By size as it is read, the most frequent first.
        histograms: Of what has an order.
    """

    study: str
    kind: str
    num_images: int
    num_patients: int
    splits: tuple[str, ...]
    labels: tuple[Count, ...] = field(repr=False)
    groups: dict[str, tuple[Count, ...]] = field(repr=False)
    sites: tuple[Count, ...] = field(repr=False)
    sizes: tuple[Count, ...] = field(repr=False)
    histograms: tuple[Histogram, ...] = field(repr=False)


def summarise(study: Study, records: Sequence[Record], facts: Sequence[ImageFacts]) -> Summary:
    """Counts everything once.

    Args:
        study: The study.
        records: Its records, at least one.
        facts: What was seen of their images.
    """
    shapes = {fact.row: " x ".join(map(str, fact.shape)) for fact in facts if fact.shape}
    splits = tuple(name for name in SPLITS if any(record.split == name for record in records))
    names = sorted({name for record in records for name in record.groups})

    def count(of: Callable[[Record], Iterable[str]]) -> tuple[Count, ...]:
        return _counts(records, of, splits)

    return Summary(
        study=study.name,
        kind=study.image_kind.value,
        num_images=len(records),
        num_patients=len({record.patient for record in records}),
        splits=splits,
        labels=count(lambda record: _label_names(study.task, record)),
        groups={
            name: count(lambda record, name=name: [record.groups.get(name) or "unknown"])
            for name in names
        },
        sites=count(lambda record: [record.site] if record.site else []),
        sizes=tuple(
            sorted(
                count(lambda record: [shapes[record.row]] if record.row in shapes else []),
                key=lambda one: -one.images,
            )
        ),
        histograms=_histograms(records, facts),
    )


def _label_names(task: Task, record: Record) -> list[str]:
    """The labels of an image in words."""
    if task.kind is TaskKind.multiclass:
        return [task.names[record.labels[0]]]
    if task.kind is TaskKind.binary:
        return [task.names[0] if record.labels[0] == 1 else f"not {task.names[0]}"]
    pairs = list(zip(task.names, record.labels, strict=True))
    found = [name for name, label in pairs if label == 1]
    unknown = [f"{name}: unknown" for name, label in pairs if label == UNKNOWN]
    return [*(found or ["none of them"]), *unknown]


def _counts(
    records: Sequence[Record], of: Callable[[Record], Iterable[str]], splits: Sequence[str]
) -> tuple[Count, ...]:
    images: Counter[str] = Counter()
    patients: dict[str, set[str]] = {}
    by_split: Counter[Hashable] = Counter()
    for record in records:
        for name in of(record):
            images[name] += 1
            patients.setdefault(name, set()).add(record.patient)
            by_split[name, record.split] += 1
    return tuple(
        Count(
            name=name,
            images=images[name],
            patients=len(patients[name]),
            by_split=tuple(by_split[name, split] for split in splits),
        )
        for name in sorted(images)
    )


def _histograms(records: Sequence[Record], facts: Sequence[ImageFacts]) -> tuple[Histogram, ...]:
    per_patient = Counter(Counter(record.patient for record in records).values())
    numbers = range(1, min(max(per_patient), _BINS) + 1)
    counts = [per_patient[number] for number in numbers]
    counts[-1] += sum(count for number, count in per_patient.items() if number > numbers[-1])
    labels = [str(number) for number in numbers]
    if max(per_patient) > numbers[-1]:
        labels[-1] += "+"
    readable = [fact for fact in facts if fact.problem is None]
    return (
        Histogram(
            title="Images of a patient",
            unit="patients",
            counts=tuple(counts),
            labels=tuple(labels),
        ),
        _of_unit_values("Mean brightness of an image", [fact.mean for fact in readable], 1.0),
        _of_unit_values(
            "Contrast of an image (standard deviation)",
            [fact.deviation for fact in readable],
            0.5,  # no values in [0, 1] deviate more
        ),
    )


def _of_unit_values(title: str, values: Sequence[float], highest: float) -> Histogram:
    counts, edges = np.histogram(values, bins=_BINS, range=(0.0, highest))
    return Histogram(
        title=title,
        unit="images",
        counts=tuple(int(count) for count in counts),
        labels=tuple(f"{edge:.3g}" for edge in edges[:-1]),
    )

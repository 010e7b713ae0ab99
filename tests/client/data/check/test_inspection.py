from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from client.data.check.inspection import inspect, nearly_constant, thumbnail, unreadable
from client.data.study import Record

Make = Callable[..., Record]


def _noise(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def test_facts_of_images(make_record: Make, held_study: Any) -> None:
    records = tuple(make_record(row) for row in (3, 1, 2))
    image = _noise(0, 5, 7)
    study = held_study(records=records, images={1: image, 2: image.copy(), 3: _noise(1, 5, 7)})
    told: list[tuple[int, int]] = []
    facts = inspect(study, records, lambda done, total: told.append((done, total)))
    assert [fact.row for fact in facts] == [1, 2, 3]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert facts[0].shape == (5, 7)
    assert facts[0].mean == pytest.approx(image.mean(), abs=1e-6)
    assert facts[0].deviation == pytest.approx(image.std(), abs=1e-6)
    assert facts[0].digest == facts[1].digest
    assert facts[0].digest != facts[2].digest
    assert "digest" not in repr(facts[0])


def test_the_shape_is_part_of_the_digest(make_record: Make, held_study: Any) -> None:
    records = (make_record(1), make_record(2))
    image = _noise(0, 4, 6)
    study = held_study(records=records, images={1: image, 2: image.reshape(6, 4)})
    first, second = inspect(study, records)
    assert first.digest != second.digest


def test_unreadable_images_are_told_by_row_and_reason(make_record: Make, held_study: Any) -> None:
    records = tuple(make_record(row) for row in range(1, 6))
    images = {row: _noise(row, 4, 4) for row in (2, 4)}
    study = held_study(records=records, images=images)
    facts = inspect(study, records)
    assert facts[0].problem == "cannot be decoded (ValueError)"
    (finding,) = unreadable(facts)
    assert finding.rows == (1, 3, 5)
    assert finding.severity.value == "blocks"
    assert finding.text == "3 images cannot be used: each cannot be decoded (ValueError)."
    assert unreadable([facts[1], facts[3]]) == []


def test_many_reasons_end_in_one_line(make_record: Make) -> None:
    from client.data.check.inspection import ImageFacts

    facts = [ImageFacts(row=row, problem=f"is odd in way {row}") for row in range(1, 9)]
    findings = unreadable(facts)
    assert len(findings) == 6
    assert findings[-1].rows == (6, 7, 8)


@pytest.mark.parametrize(("spread", "found"), [(0.0, True), (4.9, True), (5.1, False)])
def test_nearly_constant_images(
    spread: float, found: bool, make_record: Make, held_study: Any
) -> None:
    image = np.full((8, 8), 0.5, dtype=np.float32)
    image[::2] += np.float32(spread / 255)
    image[1::2] -= np.float32(spread / 255)
    records = (make_record(1), make_record(2))
    study = held_study(records=records, images={1: image, 2: _noise(0, 8, 8)})
    findings = nearly_constant(inspect(study, records))
    assert [finding.rows for finding in findings] == ([(1,)] if found else [])


def test_thumbnails_show_the_middle_slice() -> None:
    volume = np.zeros((5, 8, 8), dtype=np.float32)
    volume[2] = 1.0
    picture = thumbnail(volume, 16)
    assert picture.shape == (16, 16)
    assert picture.dtype == np.uint8
    assert picture.min() == 255
    assert thumbnail(volume[0], 4).max() == 0

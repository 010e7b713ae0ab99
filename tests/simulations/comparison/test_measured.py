"""What must be equal before anything is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from simulations.comparison.folder import Folder
from simulations.comparison.measured import Measured, check_comparable

Make = Callable[..., Measured]


def test_equal_trials_are_compared(make_measured: Make) -> None:
    check_comparable([])
    check_comparable([make_measured(), make_measured("centralized", epsilon=8.0, seed=2)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cases": "d"}, "different test sets (other patients, labels or groups)"),
        ({"unit": "image"}, "has unit patient and"),
        ({"delta": 1e-6}, "has delta 1e-05 and"),
        ({"accountant": "rdp"}, "has accountant pld and"),
        ({"adjacency": "replace-one"}, "has adjacency zero-out and"),
    ],
)
def test_unequal_trials_are_refused_in_one_line(
    change: dict[str, Any], says: str, make_measured: Make
) -> None:
    equal = [make_measured(), make_measured(seed=2)]
    with pytest.raises(UsageError) as error:
        check_comparable([*equal, make_measured("local", site="a", **change)])
    line = str(error.value)
    assert says in line
    assert "'federated epsilon inf seed 1' " in line
    assert "'local epsilon inf a seed 1'" in line
    assert "\n" not in line


def test_other_pixels_of_the_same_shape_are_refused(make_measured: Make) -> None:
    one, other = make_measured(), make_measured(seed=2)
    same = other.predictions
    other = replace(
        other, predictions=replace(same, test_set=replace(same.test_set, images="other"))
    )
    with pytest.raises(UsageError, match="other images, or other preprocessing"):
        check_comparable([one, other])
    larger = replace(same.test_set, images="larger", shape=(1, 16, 16))
    check_comparable([one, replace(other, predictions=replace(same, test_set=larger))])


def test_patients_and_steps_are_of_those_who_took_part(make_measured: Make) -> None:
    assert make_measured().num_patients == 9
    assert make_measured("local", site="b").num_patients == 5
    assert make_measured().steps == 5


def test_a_folder_without_a_result(tmp_path: Path, make_measured: Make) -> None:
    with pytest.raises(UsageError, match="no result of a run"):
        Measured.read(make_measured().trial, Folder(path=tmp_path))

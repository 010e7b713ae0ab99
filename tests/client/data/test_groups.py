from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.groups import GroupReader, bin_of
from client.data.rows import Row
from common.config import ColumnsConfig
from common.errors import DataError

READER = GroupReader(
    config=ColumnsConfig(groups={"sex": "Sex", "age": "Age"}, bins={"age": [0, 30, 60]})
)


def _groups(age: str, sex: str = "F") -> dict[str, str]:
    return READER.groups(Row(number=3, cells={"Sex": sex, "Age": age}, table="t.csv"))


@pytest.mark.parametrize(
    ("age", "group"),
    [
        ("29.9", "0-30"),
        ("30", "30-60"),
        ("60", ">=60"),
        ("-1", "<0"),
        ("058Y", "30-60"),
        ("011M", "0-30"),
        ("390W", "0-30"),
        ("", "unknown"),
    ],
)
def test_ages_are_cut_into_bins(age: str, group: str) -> None:
    assert _groups(age) == {"sex": "F", "age": group}


def test_a_missing_group_is_unknown() -> None:
    assert _groups("40", sex="")["sex"] == "unknown"


@pytest.mark.parametrize("age", ["secret", "nan", "inf", "58X"])
def test_what_is_no_number_is_refused_by_row(age: str) -> None:
    with pytest.raises(DataError, match="row 3 must hold a number in column Age") as caught:
        _groups(age)
    assert age not in str(caught.value)


@given(
    st.lists(st.integers(-50, 150), min_size=1, max_size=6, unique=True).map(sorted),
    st.floats(-100, 200),
)
def test_a_bin_holds_its_numbers(edges: list[int], number: float) -> None:
    name = bin_of(number, edges)
    if name.startswith("<"):
        assert number < edges[0] == int(name[1:])
    elif name.startswith(">="):
        assert number >= edges[-1] == int(name[2:])
    else:
        low, high = next(pair for pair in pairwise(edges) if name == "{}-{}".format(*pair))
        assert low <= number < high

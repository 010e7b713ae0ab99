"""The strict reader of a hospital's YAML files."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent.yaml_file import parse
from common.errors import UsageError


def test_plain_words_mean_what_a_reader_thinks() -> None:
    values = parse(
        "a: 08:00\nb: off\nc: 1e-5\nd:\ne: yes\nf: .5\ng: true\nh: -3\ni: 2026-01-02"
    ).values
    assert values == {
        "a": "08:00",
        "b": "off",
        "c": 1e-5,
        "d": None,
        "e": "yes",
        "f": 0.5,
        "g": True,
        "h": -3,
        "i": "2026-01-02",
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\na: 2", "line 2: a: given twice"),
        ("x: {a: 1, a: 2}", "given twice"),
        ("- 1", "not a list"),
        ("", "not a list"),
        ("a: [", "line 1"),
        ("1: 2", "a key must be text"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: !!binary x", "base64"),
        ("a: !!timestamp x", "not YAML"),
        ("a: !!int x", "not YAML"),
        ("a: *b", "undefined alias"),
        ("a: " + "9" * 5000, "the number is too long"),
        ("a: " + "[" * 3000, "not YAML"),
        ("a: '" + "x" * 1_000_001 + "'", "longer than"),
    ],
)
def test_what_is_no_list_of_settings_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_settings_or_a_complaint(text: str) -> None:
    try:
        found: Any = parse(text).values
    except UsageError:
        return
    assert isinstance(found, dict)


@pytest.mark.parametrize("value", ["true", ".inf", "nan", "0", "-1", "2.1", "[1]", "x"])
def test_a_number_is_a_finite_number_within_its_bounds(value: str) -> None:
    with pytest.raises(UsageError, match="must be a number above 0 and at most 2"):
        parse(f"a: {value}").number("a", at_most=2.0)

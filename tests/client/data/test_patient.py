from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.patient import PatientHash

ONE, OTHER = PatientHash(secret=bytes(16)), PatientHash(secret=bytes(15) + b"\x01")


@given(st.text(), st.text())
def test_equal_identifiers_and_only_they_have_equal_hashes(first: str, second: str) -> None:
    assert (ONE(first) == ONE(second)) == (first == second)


@given(st.text())
def test_another_secret_gives_other_hashes(identifier: str) -> None:
    assert ONE(identifier) != OTHER(identifier)
    assert len(ONE(identifier)) == 32
    assert set(ONE(identifier)) <= set("0123456789abcdef")


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="secret of 15 bytes: must have at least 16"):
        PatientHash(secret=bytes(15))


def test_the_secret_is_not_shown() -> None:
    assert repr(PatientHash(secret=b"a secret of sixteen")) == "PatientHash()"

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from common.config import Unit
from common.errors import UsageError
from common.privacy.keys import SiteKey
from common.privacy.statement import SpendStatement, check_statement

KEY = SiteKey(bytes(range(32)))


def statement(**changes: object) -> SpendStatement:
    base = SpendStatement(
        cohort="c" * 64,
        epsilon=3.5,
        epsilon_committed=3.0,
        delta=1e-5,
        unit=Unit.patient,
        accountant="pld",
        adjacency="zero-out",
        num_events=4,
        num_open=1,
        length=8,
        head="a" * 64,
        public_key="",
    )
    return replace(base, **changes).signed(KEY)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epsilon": math.inf},
        {"epsilon": math.inf, "epsilon_committed": math.inf},
        {"unit": Unit.image},
    ],
)
def test_json_and_back_keeps_statement_and_signature(changes: dict[str, object]) -> None:
    one = statement(**changes)
    text = json.dumps(one.to_dict(), allow_nan=False)
    again = SpendStatement.from_dict(json.loads(text))
    assert again == one
    assert check_statement(again, public_key=KEY.public_key) == ()
    assert one.to_dict()["private"] is math.isfinite(one.epsilon)


def test_infinity_is_null_never_a_number() -> None:
    fields = statement(epsilon=math.inf).to_dict()
    assert fields["epsilon"] is None
    assert fields["private"] is False
    with pytest.raises(UsageError, match="private"):
        SpendStatement.from_dict({**fields, "private": True})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 1.0),
        ("epsilon_committed", 0.5),
        ("delta", 1e-6),
        ("num_events", 3),
        ("length", 9),
        ("head", "b" * 64),
        ("cohort", "d" * 64),
        ("accountant", "rdp"),
        ("unit", Unit.image),
        ("adjacency", "other"),
        ("num_open", 0),
    ],
)
def test_any_changed_field_breaks_the_signature(name: str, value: object) -> None:
    forged = replace(statement(), **{name: value})  # pyright: ignore[reportArgumentType]
    assert "signature: does not fit the statement" in check_statement(forged)


def test_another_sites_key_is_found() -> None:
    other = SiteKey(bytes(32))
    impostor = statement().signed(other)
    assert check_statement(impostor) == ()
    problem = ("public_key: not the key this site is known by",)
    assert check_statement(impostor, public_key=KEY.public_key) == problem
    assert check_statement(impostor, previous=statement()) == problem


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"length": 7}, "length"),
        ({"head": "b" * 64}, "head"),
        ({"length": 9, "epsilon_committed": 2.9}, "epsilon_committed"),
        ({"length": 9, "cohort": "d" * 64}, "cohort"),
    ],
)
def test_going_back_is_found(changes: dict[str, object], word: str) -> None:
    (problem,) = check_statement(statement(**changes), previous=statement())
    assert problem.startswith(word)


def test_going_on_is_fine() -> None:
    before = statement()
    assert check_statement(before, previous=before) == ()
    later = statement(length=10, head="b" * 64, epsilon=3.6, epsilon_committed=3.6, num_open=0)
    assert check_statement(later, previous=before) == ()
    # A training that never read data gives its reservation back: epsilon may fall, committed not.
    given_back = statement(length=9, head="b" * 64, epsilon=3.0, num_open=0)
    assert check_statement(given_back, previous=before) == ()
    elsewhere = statement(length=9, head="b" * 64, delta=1e-4, epsilon_committed=2.0)
    assert check_statement(elsewhere, previous=before) == ()


def test_committed_above_counted_is_found() -> None:
    assert any("below" in one for one in check_statement(statement(epsilon=2.0)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("epsilon", -1.0), ("length", "8"), ("length", True), ("head", None), ("unit", "hospital")],
)
def test_nonsense_is_refused(name: str, value: object) -> None:
    fields = statement().to_dict()
    with pytest.raises(UsageError, match="spend statement"):
        SpendStatement.from_dict({**fields, name: value})
    del fields[name]
    with pytest.raises(UsageError, match="spend statement"):
        SpendStatement.from_dict(fields)

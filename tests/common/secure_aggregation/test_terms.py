from __future__ import annotations

from typing import Any

import pytest

from common.errors import UsageError
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.terms import Terms, least_threshold


def test_any_other_term_is_another_context(federation: Any) -> None:
    roster = federation.roster_of(5)
    base = federation.terms_of(roster, threshold=4, max_dropouts=1)
    changes: dict[str, object] = {
        "run_id": "another",
        "round": 2,
        "roster": federation.roster_of(6).digest,
        "num_sites": 6,
        "threshold": 3,
        "max_dropouts": 0,
        "max_colluders": 1,
        "num_weights": 8,
        "modulus_bits": 64,
        "subject": "1" * 64,
    }
    assert set(changes) == set(base.to_dict())
    contexts = {base.context}
    for name, value in changes.items():
        contexts.add(Terms.from_dict({**base.to_dict(), name: value}).context)
    assert len(contexts) == len(changes) + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 2},
        {"threshold": 6},
        {"max_dropouts": 3},
        {"max_colluders": 2, "threshold": 3},
        {"modulus_bits": 16},
        {"num_weights": 0},
        {"round": 0},
        {"run_id": ""},
        {"subject": "x"},
        {"round": True},
        {"round": "1"},
        {"extra": 1},
    ],
)
def test_terms_out_of_bounds_are_refused(federation: Any, changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="secure aggregation"):
        federation.terms_of(federation.roster_of(5), **changes)


@pytest.mark.parametrize("count", range(2, 51))
def test_two_sets_of_signers_share_an_honest_site(count: int) -> None:
    for colluders in range(count // 2):
        threshold = least_threshold(count, colluders)
        honest = count - colluders
        assert 2 * (threshold - colluders) > honest
        assert 2 * (threshold - 1 - colluders) <= honest  # and none smaller would do


def test_a_roster_has_each_name_and_key_once(federation: Any) -> None:
    one, two = federation.roster_of(2).members
    assert Roster.of(dict([two, one])) == federation.roster_of(2)
    for members in ((one,), (two, one), (one, one), (one, (two[0], one[1])), (one, ("x", "y"))):
        with pytest.raises(UsageError, match="roster"):
            Roster(members=members)

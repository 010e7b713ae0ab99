"""Seeds: one for each site, round and purpose, and never the same twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from common.seeds import SimulatedSeeds, SystemSeeds, derive_seed

PART = st.one_of(st.integers(), st.text(st.characters(exclude_characters="\x1f"), max_size=8))
PARTS = st.tuples(st.integers(0, 2**32), st.lists(PART, max_size=4))


@given(PARTS, PARTS)
def test_seeds_are_equal_exactly_where_their_parts_are(
    first: tuple[int, list[str | int]], second: tuple[int, list[str | int]]
) -> None:
    seeds = [derive_seed(seed, *parts) for seed, parts in (first, second)]
    assert (seeds[0] == seeds[1]) == (first == second)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_number_and_its_name_differ() -> None:
    assert derive_seed(1, 2) != derive_seed(1, "2")
    assert derive_seed(1, 2) != derive_seed(12)
    assert derive_seed(1, "a", "bc") != derive_seed(1, "ab", "c")


def test_a_part_cannot_pose_as_two() -> None:
    with pytest.raises(ValueError, match="separator"):
        derive_seed(1, "a\x1fstr:b")


def test_every_site_round_and_purpose_has_its_own_seed() -> None:
    seeds = {
        SimulatedSeeds(run_seed=run, site=site).seed(number, purpose)
        for run in (1, 2)
        for site in ("hospital-1", "hospital-2", "hospital-11")
        for number in range(30)
        for purpose in ("sampling", "noise")
    }
    assert len(seeds) == 2 * 3 * 30 * 2


def test_a_simulated_site_repeats_its_seeds_and_a_real_one_has_none() -> None:
    simulated = SimulatedSeeds(run_seed=1, site="hospital-1")
    assert simulated.seed(3, "noise") == simulated.seed(3, "noise")
    assert {SystemSeeds().seed(number, "noise") for number in range(9)} == {None}
    assert SystemSeeds().seed(3, "sampling") is None


@pytest.mark.parametrize("seed", [0, 42])
def test_a_hospital_with_a_seed_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=f"seed={seed}: .* remove the seed"):
        SystemSeeds(configured=seed)
    assert SystemSeeds(configured=None) == SystemSeeds()

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.messages import (
    Reveal,
    pack_agreements,
    pack_reveal,
    read_masked,
    read_reveal,
    read_sealed,
)
from common.secure_aggregation.server_round import ServerRound
from common.secure_aggregation.terms import least_threshold


def _shape(draw: Any, least: int, most: int) -> tuple[int, int, int, int]:
    """Sites, drop-outs, colluders, threshold that go together."""
    count = draw(st.integers(least, most))
    colluders = draw(st.integers(0, (count - 1) // 3))
    lowest = least_threshold(count, colluders)
    dropouts = draw(st.integers(0, count - lowest))
    return count, dropouts, colluders, draw(st.integers(lowest, count - dropouts))


@st.composite
def _drills(draw: Any, least: int = 2, most: int = 9, deaths: int | None = None) -> dict[str, Any]:
    count, dropouts, colluders, threshold = _shape(draw, least, most)
    dying = draw(st.integers(0, count if deaths is None else min(dropouts, deaths)))
    numbers = draw(st.permutations(range(count)))[:dying]
    return {
        "count": count,
        "terms": {
            "max_dropouts": dropouts,
            "max_colluders": colluders,
            "threshold": threshold,
            "modulus_bits": draw(st.sampled_from([32, 64])),
            "num_weights": draw(st.integers(1, 40)),
        },
        "silent": {f"hospital-{n:02d}": draw(st.integers(1, 5)) for n in numbers},
        "seed": draw(st.integers(0, 2**32)),
    }


def _made(federation: Any, case: dict[str, Any]) -> Any:
    drill = federation.drill(case["count"], case["seed"], **case["terms"])
    drill.silent = case["silent"]
    return drill


@settings(max_examples=60, deadline=None)
@given(case=_drills())
def test_the_sum_is_exact_or_there_is_none(federation: Any, case: dict[str, Any]) -> None:
    drill = _made(federation, case)
    if not federation.enough(drill):
        with pytest.raises(Aborted, match="are needed"):
            drill.run()
        return
    total, names = drill.run()
    assert names == tuple(n for n in drill.roster.names if drill.silent.get(n, 6) > 3)
    assert total.tolist() == federation.plain_sum(drill.vectors, names)


@settings(max_examples=60, deadline=None)
@given(case=_drills(deaths=9))
def test_every_pattern_up_to_the_allowed_drop_outs_gives_the_sum(
    federation: Any, case: dict[str, Any]
) -> None:
    drill = _made(federation, case)
    total, names = drill.run()
    assert len(names) >= drill.terms.least_in_sum
    assert total.tolist() == federation.plain_sum(drill.vectors, names)


@pytest.mark.parametrize(
    ("count", "dropouts", "colluders"), [(10, 3, 2), (20, 6, 3), pytest.param(50, 12, 6)]
)
def test_many_sites(federation: Any, count: int, dropouts: int, colluders: int) -> None:
    terms = {"max_dropouts": dropouts, "max_colluders": colluders}
    threshold = least_threshold(count, colluders)
    drill = federation.drill(count, 1, **terms, threshold=threshold, modulus_bits=64)
    # some die in every phase
    drill.silent = {f"hospital-{3 * n:02d}": 1 + n % 5 for n in range(dropouts)}
    total, names = drill.run()
    assert len(names) < count
    assert total.tolist() == federation.plain_sum(drill.vectors, names)


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(case=_drills(least=10, most=50))
def test_any_pattern_of_many_sites(federation: Any, case: dict[str, Any]) -> None:
    drill = _made(federation, case)
    if not federation.enough(drill):
        with pytest.raises(Aborted, match="are needed"):
            drill.run()
        return
    total, names = drill.run()
    assert total.tolist() == federation.plain_sum(drill.vectors, names)


@pytest.mark.parametrize("bits", [32, 64])
def test_what_the_server_receives_of_a_site_looks_like_chance(federation: Any, bits: int) -> None:
    # Worst case: every site sends zeros. Bytes of masked vectors against the uniform distribution.
    drill = federation.drill(3, num_weights=20_000, modulus_bits=bits)
    drill.vectors = {name: np.zeros_like(vector) for name, vector in drill.vectors.items()}
    total, _ = drill.run()
    assert not total.any()
    columns = [read_masked(drill.terms, data) for data in drill.seen.values()]
    seen = [column.view(np.uint8) for column in columns]
    for one in (
        *seen,
        *((a - b).view(np.uint8) for a, b in itertools.pairwise(columns)),
    ):
        counts = np.bincount(one, minlength=256)
        assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4
    # the same test sees values that are not masked
    bare = np.random.default_rng(0).normal(0, 1e6, 20_000).astype(np.int64).view(np.uint64)
    assert stats.chisquare(np.bincount(bare.view(np.uint8), minlength=256)).pvalue < 1e-9


def test_masks_of_two_rounds_have_nothing_in_common(federation: Any) -> None:
    first, second = federation.drill(3, round=1), federation.drill(3, round=2)
    first.run()
    second.run()
    for name in first.roster.names:
        assert first.seen[name] != second.seen[name]
    with pytest.raises(Aborted, match="another round"):
        read_masked(second.terms, first.seen["hospital-00"])


def test_shares_that_do_not_fit_give_no_sum(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drill = federation.drill(3)
    take = ServerRound.take_reveal

    def changed(self: ServerRound, site: str, data: bytes) -> None:
        reveal = read_reveal(drill.terms, data)
        if site == "hospital-01":
            shares = {n: bytes(16) for n in reveal.mask_shares}
            data = pack_reveal(
                drill.terms, Reveal(mask_shares=shares, key_shares=reveal.key_shares)
            )
        take(self, site, data)

    monkeypatch.setattr(ServerRound, "take_reveal", changed)
    with pytest.raises(Aborted, match="do not fit together"):
        drill.run()


def test_answers_out_of_place_are_refused(federation: Any) -> None:
    drill = federation.drill(3)
    server = ServerRound(drill.terms, drill.roster)
    with pytest.raises(Aborted, match="no part"):
        server.take_keys("stranger", b"")
    with pytest.raises(Aborted, match="order"):
        server.take_masked("hospital-00", b"")
    with pytest.raises(Aborted, match="0 sites gave keys"):
        server.keys()
    with pytest.raises(Aborted, match="order"):
        server.total()


def test_a_sum_is_taken_once(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[ServerRound] = []
    total = ServerRound.total

    def noted(self: ServerRound) -> Any:
        kept.append(self)
        return total(self)

    monkeypatch.setattr(ServerRound, "total", noted)
    federation.drill(3).run()
    with pytest.raises(Aborted, match="once"):
        total(kept[0])


def test_nothing_is_learnt_below_the_threshold(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All but the last reveals: the masks of the sum are not to be had from fewer shares.
    drill = federation.drill(5, max_dropouts=2)
    drill.silent = {"hospital-00": 5, "hospital-01": 5, "hospital-02": 5}
    kept: list[ServerRound] = []
    take = ServerRound.take_reveal

    def noted(self: ServerRound, site: str, data: bytes) -> None:
        kept.append(self)
        take(self, site, data)

    monkeypatch.setattr(ServerRound, "take_reveal", noted)
    with pytest.raises(Aborted, match="2 sites gave their shares, 3 are needed"):
        drill.run()
    assert len(kept) == 2
    masked = kept[0]._sum
    assert masked.tolist() != federation.plain_sum(drill.vectors, drill.roster.names)


def test_sealed_shares_and_signatures_of_strangers_do_not_pass(federation: Any) -> None:
    drill = federation.drill(3)
    drill.run()
    server = ServerRound(drill.terms, drill.roster)
    with pytest.raises(Aborted, match="another kind"):
        server.take_keys("hospital-00", pack_agreements(drill.terms, {}))
    with pytest.raises(Aborted):
        read_sealed(drill.terms, b"\x80\x04")

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from common.errors import UsageError
from common.privacy.keys import SiteKey
from common.secure_aggregation import primitives
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.messages import (
    agreement,
    pack_advertised,
    pack_agreements,
    pack_sealed,
    pack_survivors,
    read_advertised,
    read_reveal,
    read_sealed,
)
from common.secure_aggregation.site_round import SiteRound, begin, public_mask_key


def _begun(federation: Any, count: int = 4, **changes: Any) -> tuple[Any, dict[str, Any], bytes]:
    """Terms, states and all keys of a round that has begun."""
    roster = federation.roster_of(count)
    terms = federation.terms_of(roster, **changes)
    both = {n: begin(terms, roster, name=n, key=federation.key_of(n)) for n in roster.names}
    keys = [read_advertised(terms, data)[0] for _, data in both.values()]
    return terms, {n: state for n, (state, _) in both.items()}, pack_advertised(terms, keys)


def _shared(federation: Any, count: int = 4, **changes: Any) -> tuple[Any, Any, Any]:
    """The same after shares went round: terms, states, and what each receives."""
    terms, states, keys = _begun(federation, count, **changes)
    sealed = {}
    for name in states:
        states[name], data = states[name].share(keys)
        sealed[name] = read_sealed(terms, data)
    inbox = {r: {s: sealed[s][r] for s in states if s != r} for r in states}
    return terms, states, {name: pack_sealed(terms, shares) for name, shares in inbox.items()}


def _masked(federation: Any, count: int = 4, **changes: Any) -> tuple[Any, Any]:
    terms, states, inbox = _shared(federation, count, **changes)
    vector = primitives.zeros(terms.num_weights, terms.modulus_bits)
    return terms, {n: states[n].mask(inbox[n], vector)[0] for n in states}


class TestKeys:
    def test_keys_that_the_server_swapped_for_its_own_are_found(self, federation: Any) -> None:
        terms, states, keys = _begun(federation)
        first, second, *others = read_advertised(terms, keys)
        seed = primitives.new_seed()
        for field in ("mask_key", "channel_key", "commitment"):
            swapped = replace(second, **{field: public_mask_key(terms, seed)})
            with pytest.raises(Aborted, match="signed"):
                states[first.site].share(pack_advertised(terms, [first, swapped, *others]))

    def test_swapped_keys_signed_by_another_key_are_found(self, federation: Any) -> None:
        terms, states, keys = _begun(federation)
        first, second, *others = read_advertised(terms, keys)
        swapped = replace(second, mask_key=public_mask_key(terms, primitives.new_seed()))
        swapped = replace(swapped, signature=SiteKey.generate().sign(swapped.message(terms)))
        with pytest.raises(Aborted, match="signed"):
            states[first.site].share(pack_advertised(terms, [first, swapped, *others]))

    def test_keys_of_another_round_are_refused(self, federation: Any) -> None:
        terms, states, keys = _begun(federation)
        later = federation.terms_of(federation.roster_of(4), round=2)
        _, _, old = _begun(federation)
        with pytest.raises(Aborted, match="another round"):
            begin(
                later,
                federation.roster_of(4),
                name="hospital-00",
                key=federation.key_of("hospital-00"),
            )[0].share(keys)
        mixed = [*read_advertised(terms, keys)[:3], read_advertised(terms, old)[3]]
        # signed by the hospital for this round as well: harmless, and allowed
        states["hospital-00"].share(pack_advertised(terms, mixed))
        relabelled = [replace(one) for one in read_advertised(terms, keys)]
        with pytest.raises(Aborted, match="signed"):
            begin(
                later,
                federation.roster_of(4),
                name="hospital-00",
                key=federation.key_of("hospital-00"),
            )[0].share(pack_advertised(later, relabelled))

    def test_a_site_notices_that_its_own_keys_were_changed(self, federation: Any) -> None:
        terms, states, keys = _begun(federation)
        _, _, other = _begun(federation)
        mixed = [read_advertised(terms, other)[0], *read_advertised(terms, keys)[1:]]
        with pytest.raises(Aborted, match="own keys"):
            states["hospital-00"].share(pack_advertised(terms, mixed))

    def test_one_key_for_two_sites_is_refused(self, federation: Any) -> None:
        terms, states, keys = _begun(federation)
        first, second, *others = read_advertised(terms, keys)
        copied = replace(second, mask_key=first.mask_key)
        signature = federation.key_of(second.site).sign(copied.message(terms))
        copied = replace(copied, signature=signature)
        with pytest.raises(Aborted, match="one key"):
            states[others[0].site].share(pack_advertised(terms, [first, copied, *others]))

    def test_too_few_keys_end_the_round(self, federation: Any) -> None:
        terms, states, keys = _begun(federation)
        with pytest.raises(Aborted, match="3 sites gave keys, 4 are needed"):
            states["hospital-00"].share(pack_advertised(terms, read_advertised(terms, keys)[:3]))

    def test_the_roster_is_the_sites_own(self, federation: Any) -> None:
        mine, theirs = federation.roster_of(4), federation.roster_of(5)
        with pytest.raises(Aborted, match="roster"):
            begin(
                federation.terms_of(theirs),
                mine,
                name="hospital-00",
                key=federation.key_of("hospital-00"),
            )
        with pytest.raises(UsageError, match="own key"):
            begin(federation.terms_of(mine), mine, name="hospital-00", key=SiteKey.generate())


class TestShares:
    def test_a_changed_share_is_found(self, federation: Any) -> None:
        terms, states, inbox = _shared(federation)
        sealed = read_sealed(terms, inbox["hospital-00"])
        one = bytearray(sealed["hospital-01"])
        one[20] ^= 1
        changed = pack_sealed(terms, {**sealed, "hospital-01": bytes(one)})
        with pytest.raises(Aborted, match="encrypted share"):
            states["hospital-00"].received(changed)

    def test_a_share_for_another_site_or_from_another_is_found(self, federation: Any) -> None:
        terms, states, inbox = _shared(federation)
        misdelivered = read_sealed(terms, inbox["hospital-00"])
        misdelivered["hospital-00"] = misdelivered.pop("hospital-01")
        with pytest.raises(Aborted, match="encrypted share"):
            states["hospital-01"].received(pack_sealed(terms, misdelivered))
        swapped = read_sealed(terms, inbox["hospital-00"])
        swapped["hospital-01"], swapped["hospital-02"] = (
            swapped["hospital-02"],
            swapped["hospital-01"],
        )
        with pytest.raises(Aborted, match="encrypted share"):
            states["hospital-00"].received(pack_sealed(terms, swapped))

    def test_a_share_of_nobody_is_refused(self, federation: Any) -> None:
        terms, states, inbox = _shared(federation)
        sealed = read_sealed(terms, inbox["hospital-00"])
        sealed["stranger"] = sealed["hospital-01"]
        with pytest.raises(Aborted, match="no part"):
            states["hospital-00"].received(pack_sealed(terms, sealed))

    def test_masking_needs_values_of_the_ring(self, federation: Any) -> None:
        _, states, inbox = _shared(federation)
        with pytest.raises(ValueError, match="values of"):
            states["hospital-00"].mask(inbox["hospital-00"], primitives.zeros(8, 32))
        with pytest.raises(ValueError, match="values of"):
            states["hospital-00"].mask(inbox["hospital-00"], primitives.zeros(7, 64))


class TestReveal:
    def test_each_answer_is_given_once(self, federation: Any) -> None:
        terms, states = _masked(federation)
        site: SiteRound = states["hospital-00"]
        everyone = pack_survivors(terms, states)
        agreed, _ = site.agree(everyone, federation.key_of("hospital-00"))
        with pytest.raises(Aborted, match="out of order"):
            agreed.agree(everyone, federation.key_of("hospital-00"))
        with pytest.raises(Aborted, match="out of order"):
            site.reveal(b"")
        with pytest.raises(Aborted, match="out of order"):
            site.share(b"")

    def test_never_both_shares_of_one_site(self, federation: Any) -> None:
        terms, states = _masked(federation, 5, max_dropouts=1)
        names = sorted(states)[1:]
        signed = {
            n: states[n].agree(pack_survivors(terms, names), federation.key_of(n))[0] for n in names
        }
        signatures = {
            n: federation.key_of(n).sign(agreement(terms, states[n].held, names)) for n in names
        }
        state, data = signed[names[0]].reveal(pack_agreements(terms, signatures))
        reveal = read_reveal(terms, data)
        assert set(reveal.mask_shares) == set(names)
        assert set(reveal.key_shares) == {"hospital-00"}
        assert not state.held
        assert state.mask_seed == state.key_seed == bytes(16)

    @pytest.mark.parametrize("names", [["hospital-01"], ["hospital-01", "hospital-02"], []])
    def test_a_list_too_short_for_the_noise_is_not_signed(
        self, federation: Any, names: list[str]
    ) -> None:
        terms, states = _masked(federation, 5, max_dropouts=2)
        with pytest.raises(Aborted):
            states["hospital-01"].agree(
                pack_survivors(terms, names), federation.key_of("hospital-01")
            )

    def test_a_list_without_the_site_or_with_a_stranger_is_not_signed(
        self, federation: Any
    ) -> None:
        terms, states = _masked(federation, 5, max_dropouts=2)
        key = federation.key_of("hospital-00")
        others = sorted(states)[1:]
        for names in (others, [*sorted(states), "stranger"]):
            with pytest.raises(Aborted, match="cannot be right"):
                states["hospital-00"].agree(pack_survivors(terms, names), key)

    def test_a_server_that_names_different_survivors_gets_nothing(self, federation: Any) -> None:
        # It tells half of the sites that 00 dropped, and the others that 04 did.
        terms, states = _masked(federation, 5, max_dropouts=1)
        names = sorted(states)
        lists = {n: names[1:] if n in names[2:4] else names[:4] for n in names[:4]}
        signed, signatures = {}, {}
        for name, listed in lists.items():
            signed[name], _ = states[name].agree(
                pack_survivors(terms, listed), federation.key_of(name)
            )
            signatures[name] = federation.key_of(name).sign(
                agreement(terms, states[name].held, listed)
            )
        for name in lists:
            with pytest.raises(Aborted, match=r"2 sites signed the list .* 3 are needed"):
                signed[name].reveal(pack_agreements(terms, signatures))

    def test_signatures_of_another_key_do_not_count(self, federation: Any) -> None:
        terms, states = _masked(federation)
        names = sorted(states)
        state, _ = states[names[0]].agree(pack_survivors(terms, names), federation.key_of(names[0]))
        forged = {n: SiteKey.generate().sign(agreement(terms, names, names)) for n in names}
        with pytest.raises(Aborted, match="0 sites signed"):
            state.reveal(pack_agreements(terms, forged))


def test_a_damaged_state_is_refused(federation: Any) -> None:
    _, states, _ = _begun(federation)
    data = states["hospital-00"].to_bytes()
    assert SiteRound.from_bytes(data) == states["hospital-00"]
    with pytest.raises(Aborted, match="damaged"):
        SiteRound.from_bytes(data.replace(b'"advertised"', b'"advertisex"'))


def test_secrets_are_not_shown(federation: Any) -> None:
    _, states, _ = _begun(federation)
    state = states["hospital-00"]
    assert state.mask_seed.hex() not in repr(state)
    assert repr(state.mask_seed) not in repr(state)

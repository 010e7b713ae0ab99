from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.privacy.cohort import fingerprint, fingerprint_of, patient_hashes

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
ids = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=20)


@given(ids, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(patients: list[str], rng: random.Random) -> None:
    again = [*patients, *patients]
    rng.shuffle(again)
    assert fingerprint(again, KEY) == fingerprint(patients, KEY)
    assert fingerprint_of(patient_hashes(patients, KEY)) == fingerprint(patients, KEY)


@given(ids, st.text(min_size=1, max_size=12))
def test_another_patient_or_key_is_another_cohort(patients: list[str], extra: str) -> None:
    same = extra in patients
    assert (fingerprint([*patients, extra], KEY) == fingerprint(patients, KEY)) is same
    assert fingerprint(patients, OTHER_KEY) != fingerprint(patients, KEY)


def test_identifiers_do_not_show() -> None:
    hashes = patient_hashes(["phantom-1", "phantom-2"], KEY)
    assert len(hashes) == 2
    assert not any("phantom" in one for one in [*hashes, fingerprint(["phantom-1"], KEY)])
    # Without a key anyone could hash a guessed identifier; with two keys the hashes share nothing.
    assert set(hashes).isdisjoint(patient_hashes(["phantom-1", "phantom-2"], OTHER_KEY))


@pytest.mark.parametrize(
    ("patients", "key", "named"),
    [([], KEY, "patient_ids"), (["a", ""], KEY, "patient_ids"), (["a"], b"short", "key")],
)
def test_bad_cohorts_are_refused(patients: list[str], key: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        fingerprint(patients, key)

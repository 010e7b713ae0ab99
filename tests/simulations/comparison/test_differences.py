"""Which cells are held against each other, and the correction for their number."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.figures import Figure
from simulations.comparison.cells import cells_of
from simulations.comparison.differences import About, differences, holm
from simulations.comparison.measured import Measured
from simulations.comparison.request import Kind

Make = Callable[..., Measured]


def test_every_pair_that_is_worth_a_look(make_measured: Make) -> None:
    found = [
        make_measured(arm, augment=augment, epsilon=epsilon, site="a" if arm == "local" else None)
        for arm, augment, epsilon in product(Kind, ("none", "mix"), (1.0, math.inf))
    ]
    found.append(make_measured("lora", kind=Kind.federated))
    compared = differences(cells_of(found, [one.trial for one in found], seed=0))
    pairs = {about: {(str(o.a), str(o.b)) for o in compared if o.about is about} for about in About}
    assert ("federated epsilon 1", "centralized epsilon 1") in pairs[About.federation]
    assert ("local mix epsilon inf", "federated mix epsilon inf") in pairs[About.alone]
    assert ("centralized mix epsilon 1", "centralized mix epsilon inf") in pairs[About.privacy]
    assert ("local mix epsilon 1", "local epsilon 1") in pairs[About.synthetic]
    assert pairs[About.setting] == {("lora epsilon inf", "federated epsilon inf")}
    assert ("lora epsilon inf", "centralized epsilon inf") in pairs[About.federation]
    assert [len(pairs[about]) for about in About] == [5, 4, 6, 6, 1]


def test_a_missing_partner_leaves_the_pair_out(make_measured: Make) -> None:
    found = [make_measured("federated"), make_measured("local", site="a", epsilon=1.0)]
    assert differences(cells_of(found, [one.trial for one in found], seed=0)) == []


def test_a_difference_has_a_sign_and_a_p_value(make_measured: Make) -> None:
    found = [make_measured(shift=2.0, seed=s) for s in (1, 2)]
    found += [make_measured("centralized", shift=0.1, seed=s) for s in (1, 2)]
    (one,) = differences(cells_of(found, [one.trial for one in found], seed=0))
    auroc = one.figures[Figure.auroc]
    assert auroc.value is not None
    assert auroc.value > 0.2
    assert auroc.patients_and_seeds is not None
    assert one.p_holm == auroc.patients_and_seeds.p_two_sided < 0.05


def test_p_values_are_corrected_within_their_kind(make_measured: Make) -> None:
    found = [
        make_measured(arm, epsilon=e, shift=shift)
        for e in (1.0, 2.0, math.inf)
        for arm, shift in (("federated", 1.4), ("centralized", 0.4))
    ]
    compared = differences(cells_of(found, [one.trial for one in found], seed=0))
    family = [one for one in compared if one.about is About.federation]
    plain = []
    for one in family:
        evidence = one.figures[Figure.auroc].patients
        assert evidence is not None
        plain.append(evidence.p_two_sided)
    assert len(plain) == 3
    assert [one.p_holm for one in family] == holm(plain)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_what_its_steps_reject(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = np.zeros(len(p_values), dtype=bool)
        for rank, place in enumerate(np.argsort(p_values, kind="stable")):
            if not (len(p_values) - rank) * p_values[place] <= level:
                break
            rejected[place] = True
        assert list(np.array(corrected) <= level) == list(rejected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from common.errors import UsageError
from common.privacy.discrete import max_norm_squared
from common.secure_aggregation.discrete_gaussian import discrete_gaussian
from common.secure_aggregation.mechanism import (
    WRAP_CHANCE,
    Mechanism,
    Parties,
    design,
    most_drawn,
)
from common.secure_aggregation.randomness import RandomWords
from common.secure_aggregation.rounding import into_ring, out_of_ring


@settings(deadline=None)
@given(
    noise=st.floats(0.3, 60),
    weights=st.integers(1, 5_000_000),
    patients=st.integers(2, 200_000),
    rate=st.floats(0.01, 1),
    sites=st.integers(2, 50),
    missing=st.integers(0, 10),
    colluding=st.integers(0, 10),
)
def test_the_noise_is_enough_and_sums_fit(
    noise: float,
    weights: int,
    patients: int,
    rate: float,
    sites: int,
    missing: int,
    colluding: int,
) -> None:
    assume((sites + colluding) // 2 + 1 <= sites - missing)
    parties = Parties(num_sites=sites, max_dropouts=missing, max_colluders=colluding)
    made = design(
        noise_multiplier=noise,
        num_weights=weights,
        num_patients=patients,
        sampling_rate=rate,
        parties=parties,
    )
    assert made.noise_multiplier >= noise
    assert made.noise_multiplier < noise * 1.01 + 1 / made.clip
    # counted here: the shares that are left when all who may be missing and may collude do
    honest = sites - missing - colluding
    variance = honest * made.share_std**2 - 9
    assert variance >= noise**2 * max_norm_squared(made.clip, weights) * (1 - 1e-12)
    assert made.num_shares == honest
    assert made.noise_multiplier_alone <= made.noise_multiplier
    deviation = made.share_std * math.sqrt(sites)
    per_entry = WRAP_CHANCE / 2 / weights
    reach = deviation * -stats.norm.ppf(per_entry / 2)
    reach += stats.binom.isf(WRAP_CHANCE / 2, patients, rate) * math.sqrt(
        max_norm_squared(made.clip, weights)
    )
    assert reach < 2.0 ** (made.modulus_bits - 1)


@settings(deadline=None)
@given(patients=st.integers(1, 5000), rate=st.floats(0.001, 1))
def test_hardly_ever_more_patients_are_drawn(patients: int, rate: float) -> None:
    most = most_drawn(patients, rate, 1e-9)
    assert most <= patients
    assert stats.binom.sf(most, patients, rate) <= 1e-9


@pytest.mark.parametrize(
    "numbers", [(2, 1, 0), (5, 3, 0), (5, 0, 5), (3, -1, 0), (3, 0, -1), (4, 1, 2)]
)
def test_more_failures_than_the_protocol_bears_are_refused(numbers: tuple[int, int, int]) -> None:
    sites, missing, colluding = numbers
    with pytest.raises(UsageError, match="secure aggregation"):
        Parties(num_sites=sites, max_dropouts=missing, max_colluders=colluding)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="no modulus"):
        design(
            noise_multiplier=1e9,
            num_weights=10,
            num_patients=10,
            sampling_rate=1.0,
            parties=Parties(num_sites=2),
        )


def _decoded_noise(federation: Any, parties: Parties, made: Mechanism, missing: int) -> Any:
    """Noise of the sum over a real round, in units of the clipping norm."""
    drill = federation.drill(
        parties.num_sites,
        threshold=parties.threshold,
        max_dropouts=parties.max_dropouts,
        max_colluders=parties.max_colluders,
        num_weights=made.num_weights,
        modulus_bits=made.modulus_bits,
    )
    drill.vectors = {
        name: into_ring(
            discrete_gaussian(made.share_std, made.num_weights, RandomWords()), made.modulus_bits
        )
        for name in drill.roster.names
    }
    drill.silent = dict.fromkeys(drill.roster.names[:missing], 3)
    total, names = drill.run()
    assert len(names) == parties.num_sites - missing
    return out_of_ring(total) / made.clip


@pytest.mark.parametrize("missing", [0, 2])
def test_the_noise_of_the_sum_has_the_claimed_scale(federation: Any, missing: int) -> None:
    parties = Parties(num_sites=7, max_dropouts=2, max_colluders=1)
    made = design(
        noise_multiplier=2.5,
        num_weights=40_000,
        num_patients=1000,
        sampling_rate=0.2,
        parties=parties,
    )
    noise = _decoded_noise(federation, parties, made, missing)
    claimed = made.share_std * math.sqrt(parties.num_sites - missing) / made.clip
    statistic = float(np.sum((noise / claimed) ** 2))
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], len(noise))
    assert low < statistic < high
    # the same test rejects a share more or less
    for shares in (-1, 1):
        wrong = claimed * math.sqrt(1 + shares / (parties.num_sites - missing))
        assert not low < float(np.sum((noise / wrong) ** 2)) < high
    # with everybody allowed missing, and a colluder's share known, the full deviation is left
    left = claimed * math.sqrt((parties.num_shares) / (parties.num_sites - missing))
    assert left == pytest.approx(2.5, rel=1e-3)
    assert left >= 2.5
    assert stats.kstest(noise / claimed, "norm").pvalue > 1e-4


@settings(max_examples=10, deadline=None)
@given(sites=st.integers(2, 50))
def test_with_nobody_missing_noise_of_one_site_is_shared_by_all(sites: int) -> None:
    made = design(
        noise_multiplier=3.0,
        num_weights=1538,
        num_patients=600,
        sampling_rate=0.25,
        parties=Parties(num_sites=sites),
    )
    assert made.noise_multiplier_alone * math.sqrt(sites) == pytest.approx(3.0, rel=1e-4)

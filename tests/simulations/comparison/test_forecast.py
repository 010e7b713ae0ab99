"""How long is left."""

from __future__ import annotations

import pytest

from simulations.comparison.forecast import Forecast


def test_trials_of_a_kind_take_alike() -> None:
    kinds = {"a": "slow", "b": "slow", "c": "fast", "d": "fast", "e": "fast"}
    forecast = Forecast(kinds, num_workers=2)
    assert forecast.left([]) is None
    forecast.took("a", 100.0)
    assert forecast.left(["a"]) == pytest.approx((100 + 3 * 100) / 2)
    forecast.took("c", 10.0)
    assert forecast.left(["a", "c"]) == pytest.approx((100 + 2 * 10) / 2)
    assert forecast.left(["a", "c"], {"b": 30.0, "d": 99.0}) == pytest.approx((70 + 0 + 10) / 2)
    assert forecast.left(list(kinds)) == 0

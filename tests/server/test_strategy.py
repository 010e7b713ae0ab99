"""Every strategy against its formula in numpy, over rounds, and across a restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from common import noise
from common.config import SiteDpConfig, StrategyConfig, StrategyName, Weighting
from common.messages import Recipe, Weights
from common.seeds import SimulatedSeeds, SystemSeeds
from server.site_dp import SiteNoise
from server.strategy import Aggregator, Contribution, build

RECIPE = Recipe(
    mechanism="none",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=0.5,
    noise_multiplier=0.0,
    steps=4,
    max_grad_norm=1.0,
    images_per_patient=1,
    optimizer="sgd",
    learning_rate=0.25,
    physical_batch=8,
    momentum=0.0,
)
PATIENTS = {"a": 30, "b": 10, "c": 60, "d": 20, "e": 80}
ROUNDS = 4
NAMES = [name for name in StrategyName if name is not StrategyName.scaffold]


@pytest.fixture(autouse=True)
def server_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def config(name: StrategyName, **more: Any) -> StrategyConfig:
    return StrategyConfig(name=name, **more)


def moved(round_number: int, current: Weights, sites: str = "abcde") -> dict[str, Contribution]:
    """What sites send: updates drawn by round and site."""
    found = {}
    for site in sites:
        rng = np.random.default_rng([round_number, ord(site)])
        weights = {
            name: (value + rng.normal(size=value.shape)).astype(np.float32)
            for name, value in current.items()
        }
        found[site] = Contribution(weights=weights, num_patients=PATIENTS[site])
    return found


def begin() -> Weights:
    return {"w": np.zeros((2, 3), np.float32), "b": np.float32([1, -1])}


def trained(aggregator: Aggregator, current: Weights, rounds: range) -> Weights:
    for number in rounds:
        current = aggregator.next_weights(number, current, moved(number, current), PATIENTS)
    return current


def mean_update(number: int, current: Weights, name: str) -> np.ndarray:
    total = sum(PATIENTS.values())
    return sum(
        part.num_patients / total * (part.weights[name].astype(np.float64) - current[name])
        for part in moved(number, current).values()
    )


class Adaptive:
    """Reddi et al. 2020, algorithm 2, with Flower's start of the bias correction."""

    def __init__(self, *, yogi: bool) -> None:
        self.yogi = yogi
        self.m: dict[str, Any] = {}
        self.v: dict[str, Any] = {}

    def __call__(self, number: int, current: Weights) -> dict[str, np.ndarray]:
        after = {}
        for name, value in current.items():
            d = mean_update(number, current, name)
            m = 0.9 * self.m.get(name, 0) + 0.1 * d
            v = self.v.get(name, np.zeros_like(d))
            if self.yogi:
                v = v - 0.01 * d**2 * np.sign(v - d**2)
                rate = 0.01
            else:
                v = 0.99 * v + 0.01 * d**2
                rate = 0.01 * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
            self.m[name], self.v[name] = m, v
            after[name] = value + rate * m / (np.sqrt(v) + 1e-3)
        return after


class Momentum:
    """Hsu et al. 2019."""

    def __init__(self) -> None:
        self.v: dict[str, Any] = {}

    def __call__(self, number: int, current: Weights) -> dict[str, np.ndarray]:
        for name in current:
            self.v[name] = 0.9 * self.v.get(name, 0) + mean_update(number, current, name)
        return {name: value + self.v[name] for name, value in current.items()}


def average(number: int, current: Weights) -> dict[str, np.ndarray]:
    return {name: value + mean_update(number, current, name) for name, value in current.items()}


def stacked(number: int, current: Weights, name: str) -> np.ndarray:
    return np.stack([c.weights[name] for c in moved(number, current).values()]).astype(float)


def median(number: int, current: Weights) -> dict[str, np.ndarray]:
    return {name: np.median(stacked(number, current, name), axis=0) for name in current}


def trimmed(number: int, current: Weights) -> dict[str, np.ndarray]:
    """One of five at each end."""
    return {name: np.sort(stacked(number, current, name), axis=0)[1:4].mean(0) for name in current}


def krum(number: int, current: Weights) -> dict[str, np.ndarray]:
    """The model with the smallest sum of squared distances to its 5 - 1 - 2 nearest."""
    models = [c.weights for c in moved(number, current).values()]
    flat = np.array([np.concatenate([m[n].ravel() for n in sorted(m)]) for m in models])
    squared = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    scores = np.sort(squared, axis=1)[:, 1:3].sum(1)
    return models[int(np.argmin(scores))]


FORMULAS: dict[StrategyName, Callable[[], Callable[..., dict[str, np.ndarray]]]] = {
    StrategyName.fedavg: lambda: average,
    StrategyName.fedprox: lambda: average,
    StrategyName.fedavgm: Momentum,
    StrategyName.fedadam: lambda: Adaptive(yogi=False),
    StrategyName.fedyogi: lambda: Adaptive(yogi=True),
    StrategyName.fedmedian: lambda: median,
    StrategyName.trimmed_mean: lambda: trimmed,
    StrategyName.krum: lambda: krum,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_follows_its_formula(name: StrategyName) -> None:
    formula = FORMULAS[name]()
    aggregator = Aggregator(config(name, num_malicious=1), RECIPE)
    current = begin()
    for number in range(1, ROUNDS + 1):
        expected = formula(number, current)
        current = aggregator.next_weights(number, current, moved(number, current), PATIENTS)
        for key, value in expected.items():
            assert current[key].dtype == np.float32
            np.testing.assert_allclose(current[key], value, rtol=2e-5, atol=2e-6)


def test_scaffold_follows_its_formulas() -> None:
    """The paper's, sites' halves included, with equal weights and one site missing in a round."""
    aggregator = Aggregator(config(StrategyName.scaffold, weighting=Weighting.equal), RECIPE)
    x, c = {"w": np.zeros(3)}, np.zeros(3)
    own = {site: np.zeros(3) for site in PATIENTS}
    length = RECIPE.steps * RECIPE.learning_rate
    current: Weights = {"w": np.zeros(3, np.float32)}
    for number in range(1, 6):
        sites = "abcde" if number != 3 else "abde"
        sent = aggregator.control.get("w", np.zeros(3, np.float32))
        np.testing.assert_allclose(sent, c, atol=1e-5)
        gradients = {s: np.random.default_rng([number, ord(s)]).normal(size=3) for s in sites}
        y = {s: x["w"] - length * (gradients[s] - own[s] + c) for s in sites}
        delta_c = np.zeros(3)
        for s in sites:
            after = own[s] - c + (x["w"] - y[s]) / length
            np.testing.assert_allclose(after, gradients[s])  # the mean of the site's gradients
            delta_c += (after - own[s]) / len(PATIENTS)
            own[s] = after
        x = {"w": np.mean([y[s] for s in sites], axis=0)}
        c = c + delta_c
        parts = {
            s: Contribution(weights={"w": y[s].astype(np.float32)}, num_patients=PATIENTS[s])
            for s in sites
        }
        current = aggregator.next_weights(number, current, parts, PATIENTS)
        np.testing.assert_allclose(current["w"], x["w"], atol=1e-5)


@pytest.mark.parametrize("name", StrategyName)
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_restart_changes_no_bit(name: StrategyName, after: int) -> None:
    def make() -> Aggregator:
        return Aggregator(config(name, num_malicious=1), RECIPE)

    whole = trained(make(), begin(), range(1, 5))
    first = make()
    current = trained(first, begin(), range(1, after + 1))
    second = make()
    second.restore(first.state())
    again = trained(second, current, range(after + 1, 5))
    for key, value in whole.items():
        assert value.tobytes() == again[key].tobytes()


def test_moments_are_what_a_restart_needs() -> None:
    """Without them the restart would show."""
    first = Aggregator(config(StrategyName.fedadam), RECIPE)
    current = trained(first, begin(), range(1, 3))
    whole = trained(first, current, range(3, 5))
    forgetful = trained(Aggregator(config(StrategyName.fedadam), RECIPE), current, range(3, 5))
    assert not np.array_equal(whole["w"], forgetful["w"])


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_leaves_equal_updates_where_they_are_or_moves_towards_them(
    name: StrategyName,
) -> None:
    current = begin()
    target = {key: value + np.float32(1) for key, value in current.items()}
    parts = {s: Contribution(weights=target, num_patients=7) for s in "abc"}
    found = Aggregator(config(name), RECIPE).next_weights(
        1, current, parts, dict.fromkeys("abc", 7)
    )
    for key, value in target.items():
        assert found[key].shape == value.shape
        step = found[key] - current[key]
        assert np.all(step > 0)
        if name not in {StrategyName.fedadam, StrategyName.fedyogi}:
            np.testing.assert_allclose(step, 1.0, rtol=1e-6)


def test_weights_are_patients_or_equal_and_nothing_else() -> None:
    parts = {
        "x": Contribution(weights={"w": np.float32([0, 4])}, num_patients=30),
        "y": Contribution(weights={"w": np.float32([8, 0])}, num_patients=10),
    }
    current: Weights = {"w": np.zeros(2, np.float32)}
    for weighting, expected in ((Weighting.patients, [2, 3]), (Weighting.equal, [4, 2])):
        aggregator = Aggregator(config(StrategyName.fedavg, weighting=weighting), RECIPE)
        found = aggregator.next_weights(1, current, parts, {"x": 30, "y": 10})
        np.testing.assert_allclose(found["w"], expected, rtol=1e-6)


def test_sums_run_in_order_of_names() -> None:
    values = {"c": -1e8, "a": 1e8, "b": 3.0}
    parts = {
        site: Contribution(weights={"w": np.float32([v])}, num_patients=1)
        for site, v in values.items()
    }
    third = np.float32(1 / 3)
    by_name = (np.float32(1e8) * third + np.float32(3) * third) - np.float32(1e8) * third
    by_arrival = (np.float32(-1e8) * third + np.float32(1e8) * third) + np.float32(3) * third
    assert by_name != by_arrival
    current: Weights = {"w": np.zeros(1, np.float32)}
    found = Aggregator(config(StrategyName.fedavg), RECIPE).next_weights(
        1, current, parts, dict.fromkeys("abc", 1)
    )
    assert found["w"][0] == by_name


def test_krum_sees_through_large_weights() -> None:
    """Updates of 1e-3 on weights of 100: squares of whole weights would drown them in 32 bits."""
    rng = np.random.default_rng(0)
    current: Weights = {"w": (100 + rng.normal(size=1000)).astype(np.float32)}
    for _ in range(10):
        sizes = rng.permutation([1e-3, 2e-3, 3e-3, 4e-3, 5e-3])
        models = [
            (current["w"] + size * rng.normal(size=1000)).astype(np.float32) for size in sizes
        ]
        exact = np.stack(models).astype(np.float64)
        squared = ((exact[:, None] - exact[None]) ** 2).sum(-1)
        best = int(np.argmin(np.sort(squared, axis=1)[:, 1:3].sum(1)))
        parts = {
            site: Contribution(weights={"w": model}, num_patients=1)
            for site, model in zip("abcde", models, strict=True)
        }
        aggregator = Aggregator(config(StrategyName.krum, num_malicious=1), RECIPE)
        found = aggregator.next_weights(1, current, parts, dict.fromkeys(parts, 1))
        np.testing.assert_allclose(found["w"], models[best], atol=2e-5)


def test_the_strategies_are_flowers() -> None:
    for name in NAMES:
        assert type(build(config(name), RECIPE)).__module__.startswith("flwr.serverapp.strategy")


def noisy(sites: str, seed: int, *, clip: float = 1.0, sigma: float = 1.0) -> np.ndarray:
    """The noise in a round's mean of zero updates."""
    site_noise = SiteNoise(
        SiteDpConfig(noise_multiplier=sigma, clip_norm=clip),
        SimulatedSeeds(run_seed=seed, site="server"),
    )
    aggregator = Aggregator(config(StrategyName.fedavg), RECIPE, site_noise)
    current: Weights = {"w": np.zeros(20000, np.float32)}
    parts = {s: Contribution(weights=current, num_patients=PATIENTS[s]) for s in sites}
    return aggregator.next_weights(1, current, parts, PATIENTS)["w"]


@pytest.mark.parametrize("sites", ["abcde", "be", "a", "bd"])
def test_site_noise_is_for_the_largest_weight_and_the_actual_responders(sites: str) -> None:
    weights = [PATIENTS[s] for s in sites]
    expected = max(weights) / sum(weights)
    found = float(np.std(noisy(sites, 1), dtype=np.float64))
    assert found == pytest.approx(expected, rel=0.02)
    # Flower's wrappers would have added this, which is too little for unequal sites.
    if len(set(weights)) > 1:
        assert abs(found - 1 / len(sites)) > 0.1 * found


def test_without_seeds_every_bit_of_the_noise_is_the_systems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current: Weights = {"a": np.zeros(30, np.float32), "b": np.zeros((200, 100), np.float32)}
    shares = {"a": (current, 3), "b": (current, 1)}
    settings = SiteDpConfig(noise_multiplier=2.0, clip_norm=0.5)

    def mean() -> Weights:
        return SiteNoise(settings, SystemSeeds()).mean(1, current, shares)

    first, second = mean(), mean()
    for name in current:
        assert not np.any(first[name] == second[name])
    assert np.std(first["b"], dtype=np.float64) == pytest.approx(2.0 * 0.5 * 3 / 4, rel=0.02)
    # With the system's keys known, nothing is left to chance: no other generator is in it.
    monkeypatch.setattr(noise, "_system_key", lambda: bytes(32))
    first, second = mean(), mean()
    for name in current:
        np.testing.assert_array_equal(first[name], second[name])


def test_no_site_moves_the_mean_by_more_than_its_noise_is_for() -> None:
    """Whatever one site sends, against nothing: at most clip x largest weight / sum of weights."""
    current: Weights = {"w": np.zeros(50, np.float32)}
    rng = np.random.default_rng(3)
    for size in (1e-3, 1.0, 1e6):
        for site in PATIENTS:
            others = moved(1, current)
            absent = {**others, site: Contribution(weights=current, num_patients=PATIENTS[site])}
            update = {"w": np.float32(size) * rng.normal(size=50).astype(np.float32)}
            present = {**others, site: Contribution(weights=update, num_patients=PATIENTS[site])}
            site_noise = SiteNoise(
                SiteDpConfig(noise_multiplier=1e-9, clip_norm=2.0),
                SimulatedSeeds(run_seed=1, site="server"),
            )
            aggregator = Aggregator(config(StrategyName.fedavg), RECIPE, site_noise)
            one, other = (
                aggregator.next_weights(1, current, parts, PATIENTS)["w"]
                for parts in (absent, present)
            )
            bound = 2.0 * max(PATIENTS.values()) / sum(PATIENTS.values())
            assert np.linalg.norm(one - other) <= bound * (1 + 1e-5)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import (
    AccountantName,
    AugmentConfig,
    AugmentMode,
    ClippingKind,
    Config,
    EngineName,
    FederationConfig,
    Mechanism,
    Personal,
    Precision,
    PrivacyConfig,
    StrategyConfig,
    StrategyName,
    TrainingConfig,
)
from common.errors import UsageError
from common.messages import Recipe
from common.privacy import accountants
from common.privacy.events import PoissonGaussianSteps
from server.recipe import Synthetic, after, default_delta, plan


def config(privacy: PrivacyConfig, *, rounds: int = 4, steps: int = 5) -> Config:
    return Config(
        privacy=privacy, federation=FederationConfig(rounds=rounds, steps_per_round=steps)
    )


def epsilon(recipe: Recipe, rounds: int) -> float:
    event = PoissonGaussianSteps(
        sampling_rate=recipe.sampling_rate,
        noise_multiplier=recipe.noise_multiplier,
        steps=rounds * recipe.steps,
    )
    return accountants.build(recipe.accountant).epsilon([event], recipe.delta)


@pytest.mark.parametrize("accountant", AccountantName)
@pytest.mark.parametrize(("target", "rounds", "rate"), [(8.0, 8, 0.25), (1.0, 3, 0.5)])
def test_all_planned_rounds_end_at_or_just_below_the_target(
    accountant: AccountantName, target: float, rounds: int, rate: float
) -> None:
    privacy = PrivacyConfig(epsilon=target, sampling_rate=rate, accountant=accountant)
    recipe = plan(config(privacy, rounds=rounds), num_patients=600)
    assert recipe.accountant == accountant.value
    assert 0.99 * target <= epsilon(recipe, rounds) <= target
    assert epsilon(recipe, rounds + 1) > target


def test_a_fixed_noise_is_taken_as_it_is_and_epsilon_grows() -> None:
    privacy = PrivacyConfig(epsilon=8.0, noise_multiplier=0.7)
    short, long = (plan(config(privacy, rounds=n), num_patients=600) for n in (2, 4))
    assert short == long
    assert short.noise_multiplier == 0.7
    assert epsilon(short, 4) > epsilon(short, 2)


def test_without_privacy_there_is_no_noise() -> None:
    privacy = PrivacyConfig(mechanism=Mechanism.none, noise_multiplier=0.7)
    recipe = plan(config(privacy), num_patients=600)
    assert not recipe.private
    assert (recipe.mechanism, recipe.noise_multiplier) == ("none", 0.0)


@given(st.integers(1, 10**7))
def test_delta_stays_below_one_over_the_number_of_patients(num_patients: int) -> None:
    delta = default_delta(num_patients)
    assert 0 < delta <= 1e-5
    assert delta < 1 / num_patients


def test_default_delta_by_hand() -> None:
    assert default_delta(600) == 1e-5
    assert default_delta(10**6) == pytest.approx(10**-6.6)


def test_a_given_delta_wins() -> None:
    assert plan(config(PrivacyConfig(noise_multiplier=1.0)), num_patients=10**6).delta < 1e-6
    given = PrivacyConfig(noise_multiplier=1.0, delta=1e-4)
    assert plan(config(given), num_patients=10**6).delta == 1e-4


@settings(deadline=None)
@given(
    st.integers(1, 50),
    st.floats(0.01, 1.0),
    st.integers(1, 8),
    st.sampled_from(["sgd", "adam"]),
    st.integers(1, 8),
)
def test_the_rest_is_what_the_configuration_says(
    steps: int, rate: float, images: int, optimizer: str, views: int
) -> None:
    privacy = PrivacyConfig(
        noise_multiplier=1.5,
        sampling_rate=rate,
        images_per_patient=images,
        max_grad_norm=0.3,
        clipping=ClippingKind.automatic,
    )
    whole = config(privacy, steps=steps)
    whole.training = TrainingConfig(
        optimizer=optimizer,
        learning_rate=0.02,
        physical_batch=3,
        precision=Precision.bf16,
        augmentation_multiplicity=views,
    )
    recipe = plan(whole, num_patients=10)
    assert recipe.to_dict() == {
        "mechanism": "dp_sgd",
        "unit": "patient",
        "accountant": "pld",
        "delta": 1e-5,
        "sampling_rate": rate,
        "noise_multiplier": 1.5,
        "steps": steps,
        "max_grad_norm": 0.3,
        "images_per_patient": images,
        "optimizer": optimizer,
        "learning_rate": 0.02,
        "physical_batch": 3,
        "clipping": "automatic",
        "engine": "bookkeeping",
        "precision": "bf16",
        "augmentation_multiplicity": views,
        "synthetic_ratio": 0.0,
        "synthetic_as_patients": False,
        "momentum": 0.9,
        "proximal_mu": 0.0,
        "controlled": False,
        "personal": "none",
    }


@pytest.mark.parametrize("engine", EngineName)
def test_sites_are_told_the_engine(engine: EngineName) -> None:
    privacy = PrivacyConfig(noise_multiplier=1.0, engine=engine, images_per_patient=1)
    assert plan(config(privacy), num_patients=10).engine == engine.value


@pytest.mark.parametrize("name", StrategyName)
def test_sites_are_told_what_the_strategy_needs_of_them(name: StrategyName) -> None:
    whole = config(PrivacyConfig(noise_multiplier=1.0))
    whole.strategy = StrategyConfig(name=name, proximal_mu=0.3, personal=Personal.head)
    whole.training = TrainingConfig(optimizer="sgd")
    recipe = plan(whole, num_patients=10)
    scaffold = name is StrategyName.scaffold
    assert recipe.proximal_mu == (0.3 if name is StrategyName.fedprox else 0.0)
    assert (recipe.controlled, recipe.momentum) == (scaffold, 0.0 if scaffold else 0.9)
    assert recipe.personal == "head"


@pytest.mark.parametrize("name", [StrategyName.fedavg, StrategyName.scaffold])
def test_scaffold_has_a_twin_without_its_corrections(name: StrategyName) -> None:
    """Equal recipes but for the control variate, so that a comparison compares that."""
    whole = config(PrivacyConfig(noise_multiplier=1.0))
    whole.strategy = StrategyConfig(name=name)
    whole.training = TrainingConfig(optimizer="sgd", learning_rate=0.1, momentum=0.0)
    recipe = plan(whole, num_patients=10)
    assert (recipe.optimizer, recipe.momentum) == ("sgd", 0.0)
    alike = replace(recipe, controlled=False)
    whole.strategy = StrategyConfig(name=StrategyName.fedavg)
    assert alike == plan(whole, num_patients=10)


@pytest.mark.parametrize("momentum", [0.0, 0.3, None])
def test_sites_are_told_the_momentum(momentum: float | None) -> None:
    whole = config(PrivacyConfig(noise_multiplier=1.0))
    whole.training = TrainingConfig(optimizer="sgd", momentum=momentum)
    assert plan(whole, num_patients=10).momentum == (0.9 if momentum is None else momentum)


def test_steps_after_the_last_round_are_within_the_target() -> None:
    asked = Config(
        privacy=PrivacyConfig(epsilon=4.0, delta=1e-5), strategy=StrategyConfig(local_steps_after=9)
    )
    recipe = plan(asked, num_patients=200)
    alone = replace(asked, strategy=StrategyConfig())
    assert recipe.noise_multiplier > plan(alone, num_patients=200).noise_multiplier

    def spent(steps: int) -> float:
        event = PoissonGaussianSteps(
            sampling_rate=recipe.sampling_rate,
            noise_multiplier=recipe.noise_multiplier,
            steps=steps,
        )
        return accountants.build("pld").epsilon([event], 1e-5)

    steps = recipe.steps * asked.federation.rounds
    assert 3.95 < spent(steps + 9) <= 4.0
    assert spent(steps + 12) > 4.0


def test_a_site_on_its_own_is_held_by_nothing() -> None:
    whole = config(PrivacyConfig(noise_multiplier=1.0))
    whole.strategy = StrategyConfig(name=StrategyName.fedprox, personal=Personal.head)
    recipe = plan(whole, num_patients=10)
    tuned = after(recipe, 7)
    assert tuned == replace(recipe, steps=7, proximal_mu=0.0)
    assert not after(replace(recipe, optimizer="sgd", momentum=0.0, controlled=True), 7).controlled


GAN = PoissonGaussianSteps(sampling_rate=0.25, noise_multiplier=1.5, steps=40)


def test_what_was_paid_for_synthetic_images_is_left_out_of_the_rest() -> None:
    asked = Config(privacy=PrivacyConfig(epsilon=8.0, delta=1e-5))
    recipe = plan(asked, num_patients=200, synthetic=Synthetic(num_images=10, paid=(GAN,)))
    steps = PoissonGaussianSteps(
        sampling_rate=recipe.sampling_rate,
        noise_multiplier=recipe.noise_multiplier,
        steps=recipe.steps * asked.federation.rounds,
    )
    together = accountants.build("pld").epsilon([GAN, steps], 1e-5)
    assert 7.9 < together <= 8.0
    assert recipe.noise_multiplier > plan(asked, num_patients=200).noise_multiplier


def test_nothing_left_is_said() -> None:
    asked = Config(privacy=PrivacyConfig(epsilon=3.0, delta=1e-5))
    with pytest.raises(UsageError, match="initial weights alone cost epsilon"):
        plan(asked, num_patients=200, synthetic=Synthetic(paid=(GAN,)))


def test_counted_as_patients_a_step_stays_as_large() -> None:
    augment = AugmentConfig(mode=AugmentMode.mix, pool=Path("x"), counted_as_patients=True)
    asked = Config(augment=augment, federation=FederationConfig(num_sites=3))
    recipe = plan(asked, num_patients=300, synthetic=Synthetic(num_images=200))
    drawn = recipe.sampling_rate * (300 + 3 * 200)
    assert drawn == pytest.approx(asked.privacy.sampling_rate * 300)
    assert (recipe.synthetic_ratio, recipe.synthetic_as_patients) == (0.0, True)
    mixed = replace(asked, augment=replace(augment, counted_as_patients=False, ratio=0.5))
    recipe = plan(mixed, num_patients=300, synthetic=Synthetic(num_images=200))
    assert recipe.sampling_rate == asked.privacy.sampling_rate
    assert (recipe.synthetic_ratio, recipe.synthetic_as_patients) == (0.5, False)

"""From the configuration to the recipe that sites are asked to follow: public numbers only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.config import AugmentMode, Config, StrategyName
from common.errors import UsageError
from common.messages import Recipe
from common.privacy import accountants
from common.privacy.calibration import calibrate
from common.privacy.events import Event
from server.schedule import Schedule

_MOMENTUM = 0.9


def default_delta(num_patients: int) -> float:
    """min(1e-5, N^-1.1): well below one over the number of patients."""
    return min(1e-5, num_patients**-1.1)


def _momentum(config: Config) -> float:
    """Of the hospitals' gradient descent."""
    if config.training.momentum is not None:
        return config.training.momentum
    return 0.0 if config.strategy.name is StrategyName.scaffold else _MOMENTUM


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """The synthetic images of a run (public).

    Attributes:
        num_images: how many each site may mix in.
        paid: what a patient paid for them, at the site where that was most.
    """

    num_images: int = 0
    paid: tuple[Event, ...] = ()


def plan(config: Config, *, num_patients: int, synthetic: Synthetic | None = None) -> Recipe:
    """The recipe of every round of a run over ``num_patients`` patients of all sites.

    With a target epsilon the noise is the smallest that keeps all planned rounds, the steps that
    each site takes after them for itself, and what was paid for synthetic images together at or
    below it. Where rounds ask only some sites, the planned rounds are those of the site that is
    drawn most often: one noise for all, and no site's rounds pass the target. Nothing here depends
    on patients' data but their (public) number.

    Raises:
        UsageError: if the synthetic images alone reach the target.
    """
    synthetic = synthetic or Synthetic()
    augment = config.augment
    mixes = augment.mode is AugmentMode.mix
    privacy, federation, strategy = config.privacy, config.federation, config.strategy
    controlled = strategy.name is StrategyName.scaffold
    rate = privacy.sampling_rate
    if augment.counted_as_patients:  # a step stays as large as without synthetic images
        rate *= num_patients / (num_patients + federation.num_sites * synthetic.num_images)
    delta = privacy.delta if privacy.delta is not None else default_delta(num_patients)
    noise_multiplier = privacy.noise_multiplier or 0.0
    target = privacy.epsilon_target
    if target is not None:
        accountant = accountants.build(privacy.accountant.value)
        paid = accountant.epsilon(synthetic.paid, delta)
        if paid >= target:
            raise UsageError(
                f"privacy.epsilon={target:g}: synthetic images and initial weights alone cost "
                f"epsilon {paid:.4g} (delta {delta:g}); nothing is left to train with"
            )
        noise_multiplier = calibrate(
            epsilon=target,
            delta=delta,
            sampling_rate=rate,
            steps=most_steps(config),
            accountant=accountant,
            before=synthetic.paid,
        )
    return Recipe(
        mechanism=privacy.mechanism.value,
        unit=privacy.unit.value,
        accountant=privacy.accountant.value,
        delta=delta,
        sampling_rate=rate,
        noise_multiplier=noise_multiplier if privacy.private else 0.0,
        steps=federation.steps_per_round,
        max_grad_norm=privacy.max_grad_norm,
        images_per_patient=privacy.images_per_patient,
        optimizer=config.training.optimizer,
        learning_rate=config.learning_rate,
        physical_batch=config.training.physical_batch,
        clipping=privacy.clipping.value,
        engine=privacy.engine.value,
        precision=config.training.precision.value,
        augmentation_multiplicity=config.training.augmentation_multiplicity,
        synthetic_ratio=augment.ratio if mixes and not augment.counted_as_patients else 0.0,
        synthetic_as_patients=augment.counted_as_patients,
        momentum=_momentum(config),
        proximal_mu=strategy.mu,
        controlled=controlled,
        personal=strategy.personal.value,
    )


def most_steps(config: Config) -> int:
    """Private steps of the site that takes most, over all rounds and after them."""
    rounds = Schedule.of(config).most_rounds
    return rounds * config.federation.steps_per_round + config.strategy.local_steps_after


def after(recipe: Recipe, steps: int) -> Recipe:
    """The recipe of a site that trains the last model ``steps`` steps on for itself.

    The rounds' own, but that nothing holds the site to the others any more.
    """
    return replace(recipe, steps=steps, proximal_mu=0.0, controlled=False)

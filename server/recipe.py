"""From the configuration to the recipe that sites are asked to follow: public numbers only."""

from __future__ import annotations

from common.config import Config
from common.messages import Recipe
from common.privacy import accountants
from common.privacy.calibration import calibrate


def default_delta(num_patients: int) -> float:
    """min(1e-5, N^-1.1): well below one over the number of patients."""
    return min(1e-5, num_patients**-1.1)


def plan(config: Config, *, num_patients: int) -> Recipe:
    """The recipe of every round of a run over ``num_patients`` patients of all sites.

    With a target epsilon the noise is the smallest that keeps all planned rounds together at or
    below it. Nothing here depends on patients' data but their (public) number.
    """
    privacy, federation = config.privacy, config.federation
    delta = privacy.delta if privacy.delta is not None else default_delta(num_patients)
    noise_multiplier = privacy.noise_multiplier or 0.0
    target = privacy.epsilon_target
    if target is not None:
        noise_multiplier = calibrate(
            epsilon=target,
            delta=delta,
            sampling_rate=privacy.sampling_rate,
            steps=federation.rounds * federation.steps_per_round,
            accountant=accountants.build(privacy.accountant.value),
        )
    return Recipe(
        mechanism=privacy.mechanism.value,
        unit=privacy.unit.value,
        accountant=privacy.accountant.value,
        delta=delta,
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=noise_multiplier if privacy.private else 0.0,
        steps=federation.steps_per_round,
        max_grad_norm=privacy.max_grad_norm,
        images_per_patient=privacy.images_per_patient,
        optimizer=config.training.optimizer,
        learning_rate=config.training.learning_rate,
        physical_batch=config.training.physical_batch,
        clipping=privacy.clipping.value,
        engine=privacy.engine.value,
        precision=config.training.precision.value,
        augmentation_multiplicity=config.training.augmentation_multiplicity,
    )

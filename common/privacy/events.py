"""What a mechanism released, as data: the ledger stores it, accountants interpret it.

Every field is public (chosen before looking at any patient); none may be computed from private
data. A patient's (or image's) contribution has norm at most 1 in units of the clipping norm, so a
``noise_multiplier`` is the noise's standard deviation divided by that norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never, cast

from dp_accounting import dp_event  # pyright: ignore[reportMissingTypeStubs]

from common.privacy import discrete


def _require(condition: bool, name: str, value: object, bound: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r}: {bound}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_noise(noise_multiplier: object) -> None:
    valid = _is_number(noise_multiplier) and 0 <= cast(float, noise_multiplier) < math.inf
    _require(valid, "noise_multiplier", noise_multiplier, "must be a finite number, at least 0")


def _check_rate(sampling_rate: object) -> None:
    valid = _is_number(sampling_rate) and 0 < cast(float, sampling_rate) <= 1
    _require(valid, "sampling_rate", sampling_rate, "must be above 0 and at most 1")


def _check_count(name: str, value: object, least: int) -> None:
    valid = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _require(valid, name, value, f"must be a whole number, at least {least}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PoissonGaussianSteps:
    """Steps of DP-SGD: each unit joins a step independently with probability ``sampling_rate``.

    Steps that drew nobody count too. A noise multiplier of 0 releases exact sums: epsilon is
    infinite.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _check_rate(self.sampling_rate)
        _check_noise(self.noise_multiplier)
        _check_count("steps", self.steps, 0)

    def event(self) -> dp_event.DpEvent:
        """The same as an event of dp_accounting."""
        gaussian = dp_event.GaussianDpEvent(self.noise_multiplier)
        return dp_event.SelfComposedDpEvent(
            dp_event.PoissonSampledDpEvent(self.sampling_rate, gaussian), self.steps
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianRelease:
    """``count`` sums over the whole cohort with Gaussian noise: metrics, quantiles, counts."""

    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_count("count", self.count, 0)

    def event(self) -> dp_event.DpEvent:
        """The same as an event of dp_accounting."""
        return dp_event.SelfComposedDpEvent(
            dp_event.GaussianDpEvent(self.noise_multiplier), self.count
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NonPrivateRelease:
    """Something computed from patients left without noise: epsilon is infinite from here on."""

    reason: str

    def __post_init__(self) -> None:
        valid = isinstance(cast(object, self.reason), str) and bool(self.reason.strip())
        _require(valid, "reason", self.reason, "must say in words why no noise was added")

    def event(self) -> dp_event.DpEvent:
        """The same as an event of dp_accounting."""
        return dp_event.NonPrivateDpEvent()


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPoissonGaussianSteps:
    """`PoissonGaussianSteps` over images, as one patient with up to ``group_size`` images sees it.

    The patient's images join independently, so its contribution is Binomial(group_size,
    sampling_rate) clipped vectors, at worst all aligned: a mixture of Gaussians (Ganesh 2024,
    "Tight group-level DP guarantees for DP-SGD with sampling via mixture of Gaussians
    mechanisms").
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    group_size: int

    def __post_init__(self) -> None:
        _check_rate(self.sampling_rate)
        _check_noise(self.noise_multiplier)
        _check_count("steps", self.steps, 0)
        _check_count("group_size", self.group_size, 1)

    def sensitivities(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """How many of the patient's images are drawn, and how probable each number is.

        More than 16 possible numbers are rounded up to 16 values, and numbers rarer than
        1e-17 count as all of the images: stochastically larger, so an upper bound.
        """
        size, width = self.group_size, math.ceil(self.group_size / 16)
        mass: dict[int, float] = {0: 0.0, size: 0.0}
        for drawn in range(size + 1):
            probability = _binomial(drawn, size, self.sampling_rate)
            rounded = min(size, math.ceil(drawn / width) * width)
            level = rounded if drawn == 0 or probability > 1e-17 else size
            mass[level] = mass.get(level, 0.0) + probability
        drawn_numbers = sorted(mass)
        return tuple(map(float, drawn_numbers)), tuple(mass[n] for n in drawn_numbers)

    def event(self) -> dp_event.DpEvent:
        """The same as an event of dp_accounting."""
        drawn, probabilities = self.sensitivities()
        mixture = dp_event.MixtureOfGaussiansDpEvent(self.noise_multiplier, drawn, probabilities)
        return dp_event.SelfComposedDpEvent(mixture, self.steps)


def _binomial(k: int, n: int, p: float) -> float:
    if p == 1.0:
        return float(k == n)
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p))


@dataclass(frozen=True, kw_only=True, slots=True)
class SummedDiscreteGaussianSteps:
    """Steps of DP-SGD whose noise several sites add together, in whole numbers, to one sum.

    Only the sum is seen: that is what secure aggregation is trusted for. Without that trust a
    site's own share alone hides its patients: `alone`. The cost of rounding and of noise in whole
    numbers is in `gaussian`; derivation in docs/secure-aggregation.md.

    Attributes:
        sampling_rate: Probability with which a unit joins a step, at every site.
        clip: Whole numbers in one clipping norm.
        num_weights: Entries of the sum.
        share_std: Deviation of one site's discrete Gaussian noise, in whole numbers.
        num_shares: Shares that are in every sum and that nobody but their sites knows.
        steps: How many sums.
    """

    sampling_rate: float
    clip: int
    num_weights: int
    share_std: int
    num_shares: int
    steps: int

    def __post_init__(self) -> None:
        _check_rate(self.sampling_rate)
        for name in ("clip", "num_weights", "num_shares"):
            _check_count(name, getattr(self, name), 1)
        _check_count("share_std", self.share_std, discrete.LEAST_SHARE_STD)
        _check_count("steps", self.steps, 0)

    def gaussian(self) -> PoissonGaussianSteps:
        """The steps with continuous noise of which these are a coarser view: an upper bound."""
        return PoissonGaussianSteps(
            sampling_rate=self.sampling_rate,
            noise_multiplier=discrete.noise_multiplier(
                clip=self.clip,
                num_weights=self.num_weights,
                share_std=self.share_std,
                num_shares=self.num_shares,
            ),
            steps=self.steps,
        )

    def event(self) -> dp_event.DpEvent:
        """The upper bound as an event of dp_accounting."""
        return self.gaussian().event()


Event: TypeAlias = (
    PoissonGaussianSteps
    | GaussianRelease
    | NonPrivateRelease
    | GroupPoissonGaussianSteps
    | SummedDiscreteGaussianSteps
)

_KINDS: dict[str, type[Event]] = {
    "poisson_gaussian_steps": PoissonGaussianSteps,
    "gaussian_release": GaussianRelease,
    "non_private_release": NonPrivateRelease,
    "group_poisson_gaussian_steps": GroupPoissonGaussianSteps,
    "summed_discrete_gaussian_steps": SummedDiscreteGaussianSteps,
}


def dump(event: Event) -> dict[str, object]:
    """The event as JSON-ready fields with its ``kind``.

    >>> dump(GaussianRelease(noise_multiplier=8.0, count=2))
    {'kind': 'gaussian_release', 'noise_multiplier': 8.0, 'count': 2}
    """
    match event:
        case PoissonGaussianSteps():
            kind = "poisson_gaussian_steps"
        case GaussianRelease():
            kind = "gaussian_release"
        case NonPrivateRelease():
            kind = "non_private_release"
        case GroupPoissonGaussianSteps():
            kind = "group_poisson_gaussian_steps"
        case SummedDiscreteGaussianSteps():
            kind = "summed_discrete_gaussian_steps"
        case _:
            assert_never(event)
    return {"kind": kind, **{name: getattr(event, name) for name in event.__slots__}}


def load(fields: Mapping[str, object]) -> Event:
    """The event that `dump` wrote.

    Raises:
        ValueError: The kind is unknown, a field is missing, unknown or out of bounds.
    """
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(_KINDS)}")
    values = {name: value for name, value in fields.items() if name != "kind"}
    try:
        return _KINDS[kind](**values)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise ValueError(f"fields={sorted(values)}: not those of {kind}") from error


def patient_level(event: Event, images_per_patient: int) -> Event:
    """What an image-level event costs a patient who has up to ``images_per_patient`` images.

    >>> patient_level(GaussianRelease(noise_multiplier=8.0, count=2), 4)
    GaussianRelease(noise_multiplier=2.0, count=2)
    """
    _check_count("images_per_patient", images_per_patient, 1)
    if isinstance(event, SummedDiscreteGaussianSteps):
        event = event.gaussian()
    match event:
        case NonPrivateRelease():
            return event
        case GaussianRelease():
            return GaussianRelease(
                noise_multiplier=event.noise_multiplier / images_per_patient, count=event.count
            )
        case PoissonGaussianSteps():
            size = images_per_patient
        case GroupPoissonGaussianSteps():
            size = images_per_patient * event.group_size
        case _:
            assert_never(event)
    return GroupPoissonGaussianSteps(
        sampling_rate=event.sampling_rate,
        noise_multiplier=event.noise_multiplier,
        steps=event.steps,
        group_size=size,
    )


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same releases with equal mechanisms counted together, in order of first appearance.

    >>> step = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.0, steps=5)
    >>> merge([step, step])
    (PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.0, steps=10),)
    """
    counts: dict[Event, int] = {}
    for event in events:
        one, count = split(event)
        counts[one] = counts.get(one, 0) + count
    return tuple(repeat(one, count) for one, count in counts.items() if count)


def split(event: Event) -> tuple[Event, int]:
    """The event done once, and how often it was done."""
    match event:
        case NonPrivateRelease():
            return event, 1
        case GaussianRelease():
            return GaussianRelease(noise_multiplier=event.noise_multiplier, count=1), event.count
        case PoissonGaussianSteps() | GroupPoissonGaussianSteps() | SummedDiscreteGaussianSteps():
            return repeat(event, 1), event.steps
        case _:
            assert_never(event)


def repeat(event: Event, count: int) -> Event:
    """The mechanism of ``event`` done ``count`` times (a non-private release stays as it is)."""
    match event:
        case NonPrivateRelease():
            return event
        case GaussianRelease():
            return GaussianRelease(noise_multiplier=event.noise_multiplier, count=count)
        case PoissonGaussianSteps():
            return PoissonGaussianSteps(
                sampling_rate=event.sampling_rate,
                noise_multiplier=event.noise_multiplier,
                steps=count,
            )
        case GroupPoissonGaussianSteps():
            return GroupPoissonGaussianSteps(
                sampling_rate=event.sampling_rate,
                noise_multiplier=event.noise_multiplier,
                steps=count,
                group_size=event.group_size,
            )
        case SummedDiscreteGaussianSteps():
            return replace(event, steps=count)
        case _:
            assert_never(event)


def alone(event: Event) -> Event:
    """What ``event`` costs if no other site can be trusted: with the site's own noise alone.

    >>> steps = SummedDiscreteGaussianSteps(
    ...     sampling_rate=0.1, clip=1024, num_weights=10, share_std=1024, num_shares=4, steps=1
    ... )
    >>> alone(steps).num_shares
    1
    """
    if isinstance(event, SummedDiscreteGaussianSteps):
        return replace(event, num_shares=1)
    return event


def rests_on_others(events: Iterable[Event]) -> bool:
    """Whether the cost of any of ``events`` counts on the noise of other sites."""
    return any(alone(event) != event for event in events)


def within(done: Sequence[Event], reserved: Sequence[Event]) -> bool:
    """Whether ``done`` is no more than ``reserved``, mechanism by mechanism."""
    allowed: dict[Event, int] = {}
    for event in reserved:
        one, count = split(event)
        allowed[one] = allowed.get(one, 0) + count
    for event in merge(done):
        one, count = split(event)
        if count > allowed.get(one, 0):
            return False
    return True

"""A cohort's cap on epsilon, from the hospital's own policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.config import Unit
from common.privacy import accountants
from common.privacy.events import Event, alone, merge


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Epsilon cap at ``delta`` for everything ever released about one cohort.

    Every field is public. An epsilon of infinity means that spend is counted but never refused.
    ``epsilon_alone`` caps the spend as it is if no other site can be trusted: where noise is shared
    among sites (secure aggregation), with the site's own share alone.

    ``adaptive`` says that whoever asks may choose events by what was released before. A sum of
    Renyi divergences may then be held to a cap (Feldman and Zrnic 2021, arXiv 2008.11193, theorem
    3.1); privacy loss distributions may not, unless all steps are alike: then every order of asking
    is a beginning of one sequence that was fixed.

    >>> Budget(epsilon=8.0, delta=1e-5).allows([])
    True
    """

    epsilon: float
    delta: float
    accountant: str = "pld"
    unit: Unit = Unit.patient
    epsilon_alone: float = math.inf
    adaptive: bool = False

    def __post_init__(self) -> None:
        if math.isnan(self.epsilon) or self.epsilon <= 0:
            raise ValueError(f"epsilon={self.epsilon!r}: must be above 0 (infinity for no cap)")
        if math.isnan(self.epsilon_alone) or self.epsilon_alone <= 0:
            raise ValueError(f"epsilon_alone={self.epsilon_alone!r}: must be above 0")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta!r}: must lie between 0 and 1")
        accountants.build(self.accountant)

    def spent(self, events: Sequence[Event]) -> float:
        """Epsilon of ``events`` by this budget's accountant at its delta."""
        return accountants.build(self.accountant).epsilon(events, self.delta)

    def spent_alone(self, events: Sequence[Event]) -> float:
        """The same if no other site can be trusted; equal where none of ``events`` needs one."""
        return self.spent([alone(event) for event in events])

    def allows(self, events: Sequence[Event]) -> bool:
        """Whether ``events`` together stay within both caps, by every accountant that is asked."""
        return self.refusing(events) is None

    def refusing(self, events: Sequence[Event]) -> Budget | None:
        """This budget by the accountant that does not allow ``events``, if there is one."""
        judges = [self]
        if self.adaptive and len(merge(events)) > 1:
            judges.append(replace(self, accountant="rdp"))
        return next((judge for judge in judges if not judge._holds(events)), None)

    def _holds(self, events: Sequence[Event]) -> bool:
        if self.spent(events) > self.epsilon:
            return False
        return math.isinf(self.epsilon_alone) or self.spent_alone(events) <= self.epsilon_alone

    def would_exceed(self, spent: Sequence[Event], asked: Sequence[Event]) -> bool:
        """Whether doing ``asked`` after ``spent`` would pass the cap."""
        return not self.allows([*spent, *asked])

"""The PRV accountant of Opacus, for comparison with papers that report it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from opacus.accountants import PRVAccountant

from common.privacy.events import Event, NonPrivateRelease, PoissonGaussianSteps, merge

_LEAST_DELTA = 1e-10


class PrvAccountant:
    """Privacy random variables (Gopi et al. 2021, arXiv 2106.02848), upper bound.

    Covers Poisson-sampled steps with a rate below one. Opacus computes it with errors of 0.01 in
    epsilon and a thousandth of delta; it gives up at large epsilon.

    >>> steps = PoissonGaussianSteps(sampling_rate=1 / 9, noise_multiplier=20.3, steps=2700)
    >>> round(PrvAccountant().epsilon([steps], 1e-4), 2)
    0.91
    """

    name = "prv"

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        """Upper bound of epsilon at ``delta``.

        Raises:
            ValueError: for events or numbers that this accountant cannot bound.
        """
        if not _LEAST_DELTA <= delta < 1:
            raise ValueError(f"delta={delta!r}: prv needs {_LEAST_DELTA:g} to 1")
        accountant = PRVAccountant()
        for event in merge(events):
            match event:
                case NonPrivateRelease():
                    return math.inf
                case PoissonGaussianSteps(noise_multiplier=0):
                    return math.inf
                case PoissonGaussianSteps() if event.sampling_rate < 1:
                    step = (event.noise_multiplier, event.sampling_rate, event.steps)
                    accountant.history.append(step)
                case _:
                    raise ValueError(
                        f"{type(event).__name__}: prv covers Poisson-sampled steps with a rate "
                        "below 1; use pld"
                    )
        if not accountant.history:
            return 0.0
        try:
            with warnings.catch_warnings(), np.errstate(over="raise"):
                # Its inner RDP bound only sizes the grid.
                warnings.filterwarnings("ignore", "Optimal order is", UserWarning)
                return float(accountant.get_epsilon(delta))
        except (RuntimeError, FloatingPointError) as error:
            raise ValueError(f"prv cannot resolve this epsilon ({error}); use pld") from error

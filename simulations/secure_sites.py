"""Identities of simulated hospitals, and their part in secure sums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from common.privacy.keys import SiteKey
from common.seeds import derive_seed
from simulations.run_dir import RunDir

if TYPE_CHECKING:
    from client.secure_aggregation.secure_site import SecureSite
    from client.site import Site
    from common.secure_aggregation.roster import Roster


def identity_of(seed: int, site: str) -> SiteKey:
    """The key of a simulated hospital. Who knows the run's seed knows it: it protects nobody."""
    drawn = derive_seed(seed, site, "identity")
    return SiteKey(hashlib.sha256(f"fedward simulated identity {drawn}".encode()).digest())


def roster_of(seed: int, sites: Iterable[str]) -> Roster:
    """The identities of all simulated hospitals.

    Raises:
        UsageError: if they are too few or too many for secure sums.
    """
    from common.secure_aggregation.roster import Roster

    return Roster.of({site: identity_of(seed, site).public_key for site in sites})


def secured(
    site: Site, name: str, *, seed: int, sites: Iterable[str], run_dir: RunDir
) -> SecureSite:
    """``site`` with its part in secure sums."""
    from client.secure_aggregation.secure_site import SecureSetup, SecureSite

    setup = SecureSetup(
        roster=roster_of(seed, sites),
        key=identity_of(seed, name),
        state=run_dir.replies(name) / "secure-round.state",
    )
    return SecureSite(site, setup)

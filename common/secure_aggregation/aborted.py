"""When a round of secure aggregation cannot go on."""

from __future__ import annotations

from common.errors import FedwardError


class Aborted(FedwardError):
    """The round ends here: somebody is missing, or said what the protocol does not allow.

    Whoever raises it has revealed nothing of this round beyond what was sent before, which is
    masked. Its words name sites, phases and numbers only.
    """

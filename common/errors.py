"""What can go wrong, as one small tree.

::

    FedwardError
    ├── UsageError            the user can mend it: one line, exit code 2
    │   └── DataError         a folder, table or image is not as it should be
    ├── Refusal               a site says no; the code leaves the site, the text stays
    │   └── BudgetExceeded    the ledger would pass the cap
    ├── LedgerError           the ledger cannot record or cannot be trusted: training stops
    └── RunFailed             the federation could not finish

No message of these may carry a patient identifier, a file name of a patient or a pixel value.
"""

from __future__ import annotations


class FedwardError(Exception):
    """Root of every error this product raises on purpose."""


class UsageError(FedwardError, ValueError):
    """Bad input that the user can mend: shown as one line, exit code 2."""


class DataError(UsageError):
    """A study's folder, table or image is not what it should be."""


class Refusal(FedwardError):
    """A site declines a request. Only ``code`` (from a fixed list) may leave the site."""

    code = "refused"


class BudgetExceeded(Refusal):
    """The requested events would take a cohort past its epsilon cap."""

    code = "budget_exceeded"


class LedgerError(FedwardError):
    """The ledger cannot be written, read or trusted; nothing may be trained."""


class RunFailed(FedwardError):
    """The federation ended without a usable result."""

"""How a run ended, and the exit code that tells."""

from __future__ import annotations

from enum import StrEnum


class EndState(StrEnum):
    """How a run ended.

    Attributes:
        completed: every approved site trained in every round that asked it.
        completed_with_missing_sites: all rounds were held, and a site missed one.
        stopped_by_budget: before the last round too many sites had spent their budget.
        failed: there is no final model; a run that goes on from its last checkpoint may have one.
    """

    completed = "completed"
    completed_with_missing_sites = "completed-with-missing-sites"
    stopped_by_budget = "stopped-by-budget"
    failed = "failed"

    @property
    def exit_code(self) -> int:
        """Of the command that ran it; 2 is for bad input.

        >>> [state.exit_code for state in EndState]
        [0, 3, 4, 1]
        """
        match self:
            case EndState.completed:
                return 0
            case EndState.completed_with_missing_sites:
                return 3
            case EndState.stopped_by_budget:
                return 4
            case EndState.failed:
                return 1

    @property
    def has_model(self) -> bool:
        """Whether the run left a final model."""
        return self is not EndState.failed

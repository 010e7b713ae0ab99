"""What each site says it has spent: its last statement, and whether the next one follows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common.messages import Recipe, Status, TrainReply
from common.privacy.statement import SpendStatement, check_statement


class SpendTracker:
    """Each site's last accepted statement.

    The site's public key is the one of its enrolment, if ``enrolled`` has it; else the first
    statement pins it for the run. The statements lie in the records of the rounds, so a resumed
    run holds sites to what they said before it was stopped.
    """

    def __init__(
        self, history: Iterable[Mapping[str, Any]], enrolled: Mapping[str, str] | None = None
    ) -> None:
        self._enrolled = dict(enrolled or {})
        self._last: dict[str, SpendStatement] = {}
        for record in history:
            late = [(told["site"], told) for told in record.get("late", ())]
            for site, told in (*late, *record["sites"].items()):
                if told.get("statement") is not None:
                    self._last[site] = SpendStatement.from_dict(told["statement"])

    def take(self, reply: TrainReply, recipe: Recipe) -> tuple[str, ...]:
        """What is wrong with the statement in ``reply``; if nothing is, it becomes the last one.

        A reply without training needs no statement: the site's ledger may be what failed.
        """
        trained = reply.status is Status.trained
        if reply.spend is None:
            return ("statement: missing",) if trained else ()
        previous = self._last.get(reply.site)
        try:
            statement = SpendStatement.from_dict(reply.spend)
            known = self._enrolled.get(reply.site)
            problems = check_statement(statement, public_key=known, previous=previous)
        except (ValueError, OverflowError) as error:
            return (f"statement: {type(error).__name__}",)
        problems += _measure_problems(statement, previous, recipe)
        if trained and previous is not None and statement.length <= previous.length:
            problems += ("length: this round left no row in the ledger",)
        if not problems:
            self._last[reply.site] = statement
        return problems


def _measure_problems(
    statement: SpendStatement, previous: SpendStatement | None, recipe: Recipe
) -> tuple[str, ...]:
    """Another measure would read smaller, or escape the comparison with the statement before."""
    problems: tuple[str, ...] = ()
    if statement.unit.value != recipe.unit:
        problems += ("unit: not the one asked for",)
    if statement.delta > recipe.delta:
        problems += ("delta: larger than asked for",)
    if previous is not None and (statement.delta, statement.accountant) != (
        previous.delta,
        previous.accountant,
    ):
        problems += ("delta, accountant: not those of the statement before",)
    return problems

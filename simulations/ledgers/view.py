"""A ledger as people and programs read it: tables, JSON, CSV, and a look ahead."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from common.config import Unit
from common.errors import UsageError
from common.privacy.accountants import ADJACENCY, build
from common.privacy.budget import Budget
from common.privacy.calibration import describe, remaining_rounds
from common.privacy.chain import dump_events
from common.privacy.events import (
    Event,
    PoissonGaussianSteps,
    SummedDiscreteGaussianSteps,
    alone,
    patient_level,
    repeat,
    rests_on_others,
    split,
)
from simulations.ledgers.reading import Reading, Request

SCHEMA = "fedward.ledger/1"
_BAR = 40
_MOST_ROWS = 25


def running_epsilons(reading: Reading, last: int) -> list[tuple[Request, float]]:
    """The last requests (0: all), each with the epsilon of all up to it, as they count now."""
    first = max(0, len(reading.requests) - last) if last else 0
    spent = [event for one in reading.requests[:first] for event in one.entry.events]
    rows: list[tuple[Request, float]] = []
    for request in reading.requests[first:]:
        spent += request.entry.events
        rows.append((request, reading.budget.spent(spent)))
    return rows


def totals(reading: Reading) -> dict[str, Any]:
    """What the whole ledger comes to, as JSON-ready fields; an infinite epsilon is null."""
    budget, cohort = reading.budget, reading.cohort
    epsilon = budget.spent(reading.spent)
    fields = {
        "name": reading.name,
        "cohort": cohort.fingerprint,
        "num_patients": len(cohort.patient_hashes) or None,
        "unit": cohort.unit.value,
        "adjacency": ADJACENCY,
        "accountant": budget.accountant,
        "delta": budget.delta,
        "private": math.isfinite(epsilon),
        "epsilon": _finite(epsilon),
        "epsilon_budget": reading.cap,
        "num_requests": len(reading.requests),
        "num_open": sum(one.closed is None for one in reading.requests),
        "opened": reading.opened,
        "length": reading.length,
        "head": reading.head,
        "public_key": reading.public_key,
    }
    if cohort.unit is Unit.image and cohort.images_per_patient > 1:
        by_patient = [patient_level(one, cohort.images_per_patient) for one in reading.spent]
        fields["images_per_patient"] = cohort.images_per_patient
        fields["epsilon_patient"] = _finite(budget.spent(by_patient))
    if rests_on_others(reading.spent):
        fields["epsilon_alone"] = _finite(budget.spent_alone(reading.spent))
    return fields


def request_fields(request: Request) -> dict[str, Any]:
    """One request as JSON-ready fields."""
    entry = request.entry
    return {
        "time": request.time,
        "closed": request.closed,
        "request_id": entry.request_id,
        "purpose": entry.purpose,
        "origin": entry.origin or None,
        "state": entry.state.value,
        "reason": entry.reason or None,
        "reserved": dump_events(entry.reserved),
        "events": dump_events(entry.events),
    }


def shown(reading: Reading, last: int) -> dict[str, Any]:
    """What `show` prints, for programs."""
    rows = running_epsilons(reading, last)
    requests = [{**request_fields(one), "epsilon": _finite(epsilon)} for one, epsilon in rows]
    return {**totals(reading), "requests": requests}


def exported(reading: Reading) -> dict[str, Any]:
    """Every request, for programs. No patient's hash is in it."""
    return {**totals(reading), "requests": [request_fields(one) for one in reading.requests]}


def exported_csv(readings: Sequence[Reading]) -> str:
    """Every request as a line; events in words."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    columns = ("time", "closed", "request_id", "purpose", "origin", "state", "reason")
    table.writerow(["ledger", *columns, "reserved", "events"])
    for reading in readings:
        for request in reading.requests:
            fields = request_fields(request)
            words = (describe(request.entry.reserved), describe(request.entry.events))
            table.writerow([reading.name, *(fields[name] for name in columns), *words])
    return file.getvalue()


def show(console: Console, reading: Reading, last: int) -> None:
    """The ledger as a table with its totals."""
    rows = running_epsilons(reading, last)
    table = Table(title=_text(reading.name), title_justify="left")
    for name in ("time (UTC)", "request", "purpose", "events", "state"):
        table.add_column(name, overflow="fold")
    table.add_column("epsilon", justify="right")
    for request, epsilon in rows:
        entry = request.entry
        purpose = f"{entry.purpose} (cohort {entry.origin[:8]})" if entry.origin else entry.purpose
        words = (entry.request_id, purpose, describe(entry.events), entry.state.value)
        table.add_row(
            _text(request.time[:19].replace("T", " ")), *map(_text, words), rounded_up(epsilon)
        )
    hidden = len(reading.requests) - len(rows)
    console.print(table)
    if hidden:
        console.print(f"{hidden} earlier requests are not shown, but counted (--last 0 shows all)")
    console.print(_text(total_line(reading)), soft_wrap=True)


def total_line(reading: Reading) -> str:
    """The ledger's epsilon with all that it needs beside it."""
    fields, cap = totals(reading), reading.cap
    infinite = "infinite: NOT private"
    epsilon = rounded_up(fields["epsilon"]) if fields["private"] else infinite
    patient = ""
    if "epsilon_patient" in fields:
        bound = fields["epsilon_patient"]
        patient = f" (patient level {infinite if bound is None else rounded_up(bound)})"
    if "epsilon_alone" in fields:
        bound = fields["epsilon_alone"]
        figure = infinite if bound is None else rounded_up(bound)
        patient += f" ({figure} if no other hospital can be trusted)"
    open_words = f", {fields['num_open']} of them open" if fields["num_open"] else ""
    return (
        f"total: epsilon {epsilon}{patient}, {'no cap' if cap is None else f'cap {cap:g}'}, "
        f"delta {fields['delta']:.3g}, unit {fields['unit']}, accountant {fields['accountant']}, "
        f"adjacency {ADJACENCY}; {fields['num_requests']} requests{open_words}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Epsilon (index: rounds from now) if ``recipe`` goes on, and how many rounds the cap grants.

    ``rounds_left`` is absent where there is no cap. ``alone`` has the same figures if no other
    hospital can be trusted, and is empty where nothing rests on others; a ledger does not know the
    cap on these.
    """

    name: str
    recipe: tuple[Event, ...]
    budget: Budget
    epsilons: tuple[float, ...]
    rounds_left: int | None
    alone: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; an infinite epsilon is null."""
        without = {"epsilon_alone": [_finite(value) for value in self.alone]} if self.alone else {}
        return {
            **without,
            "name": self.name,
            "recipe": dump_events(self.recipe),
            "delta": self.budget.delta,
            "accountant": self.budget.accountant,
            "unit": self.budget.unit.value,
            "epsilon_budget": _finite(self.budget.epsilon),
            "epsilon": [_finite(value) for value in self.epsilons],
            "rounds_left": self.rounds_left,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a user says of future rounds; what is left out is as in the ledger's last request."""

    sampling_rate: float | None = None
    noise_multiplier: float | None = None
    steps: int | None = None

    def events(self, reading: Reading) -> tuple[Event, ...]:
        """One round.

        Raises:
            UsageError: A value is missing here and in the ledger, or out of bounds.
        """
        own = [one.entry for one in reading.requests if not one.entry.origin]
        last = own[-1].reserved if own else ()
        given = {name: getattr(self, name) for name in self.__slots__}
        if last and all(value is None for value in given.values()):
            return last
        steps = [
            event
            for event in last
            if isinstance(event, PoissonGaussianSteps | SummedDiscreteGaussianSteps)
        ]
        for name, value in given.items():
            if value is None and not steps:
                option = name.replace("_", "-")
                raise UsageError(
                    f"{reading.name}: no training in it to go on with: give --{option}"
                )
        said = {name: value for name, value in given.items() if value is not None}
        try:
            if not steps:
                return (PoissonGaussianSteps(**given),)
            before = steps[-1]
            if isinstance(before, SummedDiscreteGaussianSteps) and "noise_multiplier" in said:
                before = before.gaussian()  # the shares of another amount are not known
            return (replace(before, **said),)
        except ValueError as error:
            raise UsageError(str(error)) from error


def forecast(
    reading: Reading, recipe: tuple[Event, ...], *, rounds: int, cap: float | None
) -> Forecast:
    """What the next ``rounds`` rounds of ``recipe`` would come to."""
    terms = reading.budget
    budget = Budget(
        epsilon=terms.epsilon if cap is None else cap,
        delta=terms.delta,
        accountant=terms.accountant,
        unit=terms.unit,
    )
    by = build(budget.accountant)
    one_round = [split(event) for event in recipe]

    def events_after(number: int) -> list[Event]:
        more = [repeat(event, count * number) for event, count in one_round] if number else []
        return [*reading.spent, *more]

    def after(number: int) -> float:
        return by.epsilon(events_after(number), budget.delta)

    def alone_after(number: int) -> float:
        return by.epsilon([alone(event) for event in events_after(number)], budget.delta)

    capped = math.isfinite(budget.epsilon)
    shared = rests_on_others([*reading.spent, *recipe])
    return Forecast(
        name=reading.name,
        recipe=recipe,
        budget=budget,
        epsilons=tuple(after(number) for number in range(rounds + 1)),
        alone=tuple(alone_after(number) for number in range(rounds + 1)) if shared else (),
        rounds_left=remaining_rounds(budget=budget, spent=reading.spent, recipe=recipe)
        if capped
        else None,
    )


def show_forecast(console: Console, ahead: Forecast) -> None:
    """The forecast as a table with a plot, and where the cap stops it."""
    finite = [value for value in (*ahead.epsilons, ahead.budget.epsilon) if math.isfinite(value)]
    scale = max(finite, default=0.0) or 1.0
    table = Table(title=_text(ahead.name), title_justify="left")
    table.add_column("rounds from now", justify="right")
    table.add_column("epsilon", justify="right")
    if ahead.alone:
        table.add_column("alone", justify="right")
    table.add_column(f"0 to {scale:.3g}", min_width=_BAR + 1, no_wrap=True)
    for number in _spread(len(ahead.epsilons) - 1):
        epsilon = ahead.epsilons[number]
        figures = [rounded_up(values[number]) for values in (ahead.epsilons, ahead.alone) if values]
        table.add_row(str(number), *figures, _bar(epsilon, ahead.budget.epsilon, scale))
    budget = ahead.budget
    terms = (
        f"each round: {describe(ahead.recipe)}; delta {budget.delta:.3g}, unit "
        f"{budget.unit.value}, accountant {budget.accountant}"
    )
    words = [terms, _stop(ahead)]
    if ahead.alone:
        words.insert(1, "alone: if no other hospital can be trusted")
    console.print(Group(table, *map(Text, words)), soft_wrap=True)


def _stop(ahead: Forecast) -> str:
    if ahead.rounds_left is None:
        return "no cap stops it"
    cap = f"the cap of {ahead.budget.epsilon:g}"
    fits = "1 more round fits" if ahead.rounds_left == 1 else f"{ahead.rounds_left} more rounds fit"
    return f"{cap} stops it in round {ahead.rounds_left + 1} from now: {fits}"


def _spread(last: int) -> list[int]:
    if last < _MOST_ROWS:
        return list(range(last + 1))
    return sorted({round(last * place / (_MOST_ROWS - 1)) for place in range(_MOST_ROWS)})


def _bar(epsilon: float, cap: float, scale: float) -> Text:
    """A bar as long as epsilon; ``|`` is the cap, ``x`` what lies past it."""
    length = _BAR if math.isinf(epsilon) else round(_BAR * epsilon / scale)
    mark = round(_BAR * cap / scale) if math.isfinite(cap) else _BAR + 1
    mark = min(mark, _BAR - 1) if epsilon > cap else mark
    length = max(length, mark + 2) if epsilon > cap else length
    places = (
        "|" if place == mark else "x" if mark < place < length else "#" if place < length else " "
        for place in range(_BAR + 1)
    )
    return Text("".join(places).rstrip())


def rounded_up(epsilon: float) -> str:
    """Three decimals, never below the value."""
    return "infinite" if math.isinf(epsilon) else f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(words: str) -> Text:
    # A ledger's free text must not reach the terminal as markup or control codes.
    return Text("".join(one if one.isprintable() else "\ufffd" for one in words))

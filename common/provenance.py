"""Where synthetic images, or weights, come from, and what that cost whose patients.

It travels inside the file (safetensors metadata) or beside the images (``provenance.json``). What
has none is refused: an epsilon that leaves out how its images were made is no epsilon.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from common.errors import UsageError
from common.privacy import accountants
from common.privacy.events import Event, NonPrivateRelease, dump, load, merge, within

SCHEMA = "fedward.provenance/1"
FILE_NAME = "provenance.json"
METADATA_KEY = "fedward.provenance"
_ROUNDING = 1e-6


class Kind(Enum):
    """What protects the patients that something was made from."""

    private = "private"
    not_private = "not_private"
    public = "public"


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """What one cohort paid (public).

    Attributes:
        site: whose cohort it is.
        cohort: its keyed fingerprint.
        num_patients: how many there are.
        requests: under which its ledger holds the events.
        events: what was released; merged.
        delta: of ``epsilon``.
        unit: whose presence the events hide, ``"patient"`` or ``"image"``.
        accountant: of ``epsilon``.
    """

    site: str
    cohort: str
    num_patients: int
    requests: tuple[str, ...]
    events: tuple[Event, ...]
    delta: float
    unit: str
    accountant: str

    @property
    def epsilon(self) -> float:
        """Of ``events`` alone."""
        return accountants.build(self.accountant).epsilon(self.events, self.delta)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; an infinite epsilon is null."""
        epsilon = self.epsilon
        return {
            "site": self.site,
            "cohort": self.cohort,
            "num_patients": self.num_patients,
            "requests": list(self.requests),
            "events": [dump(event) for event in self.events],
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": self.delta,
            "unit": self.unit,
            "accountant": self.accountant,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Charge:
        """The inverse of `to_dict`; the epsilon is computed anew.

        Raises:
            ValueError: a field is missing or out of bounds, or the stated epsilon is less than
                what the events cost.
        """
        charge = cls(
            site=str(fields["site"]),
            cohort=str(fields["cohort"]),
            num_patients=int(fields["num_patients"]),
            requests=tuple(map(str, fields["requests"])),
            events=merge(load(event) for event in fields["events"]),
            delta=float(fields["delta"]),
            unit=str(fields["unit"]),
            accountant=str(fields["accountant"]),
        )
        stated = math.inf if fields["epsilon"] is None else float(fields["epsilon"])
        if not stated >= charge.epsilon * (1 - _ROUNDING):
            raise ValueError(f"epsilon {stated:g} is less than its events cost")
        return charge


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """How something was made (public).

    Attributes:
        kind: what protects the patients behind it.
        reason: why it is public, or what was done without privacy; empty if private.
        studies: names of the studies that it was made from.
        charges: of each cohort; none if public.
        seed: of the run that made it.
        source: the run that made it, or where it was published.
        code: name and version of the program.
        digest: of the images that it is about; empty if it stands in the file itself.
    """

    kind: Kind
    reason: str = ""
    studies: tuple[str, ...] = ()
    charges: tuple[Charge, ...] = ()
    seed: int | None = None
    source: str = ""
    code: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        released = [event for charge in self.charges for event in charge.events]
        leaks = any(isinstance(event, NonPrivateRelease) for event in released)
        match self.kind:
            case Kind.private:
                _hold(bool(released) and not leaks, "kind: private needs events, all of them noisy")
            case Kind.not_private:
                _hold(bool(self.reason.strip()), "reason: say what was done without privacy")
            case Kind.public:
                _hold(bool(self.reason.strip()), "reason: say why it is public")
                _hold(not self.charges, "charges: what is public charges nobody")

    @property
    def epsilon(self) -> float:
        """What it cost the patients behind it: of the cohort that paid most."""
        match self.kind:
            case Kind.public:
                return 0.0
            case Kind.not_private:
                return math.inf
            case Kind.private:
                return max(charge.epsilon for charge in by_cohort(self.charges))

    def concerns(self, study: str) -> bool:
        """Whether patients of ``study`` may be behind it; without names of studies, anyone's."""
        return self.kind is not Kind.public and (not self.studies or study in self.studies)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "schema": SCHEMA,
            "kind": self.kind.value,
            "reason": self.reason,
            "epsilon": self.epsilon if math.isfinite(self.epsilon) else None,
            "studies": list(self.studies),
            "charges": [charge.to_dict() for charge in self.charges],
            "seed": self.seed,
            "source": self.source,
            "code": self.code,
            "digest": self.digest,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Provenance:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field is missing, of the wrong kind, or contradicts another.
        """
        if fields.get("schema") != SCHEMA:
            raise ValueError(f"schema is not {SCHEMA}")
        try:
            return cls(
                kind=Kind(fields["kind"]),
                reason=str(fields.get("reason", "")),
                studies=tuple(map(str, fields.get("studies", ()))),
                charges=tuple(map(Charge.from_dict, fields.get("charges", ()))),
                seed=None if fields.get("seed") is None else int(fields["seed"]),
                source=str(fields.get("source", "")),
                code=str(fields.get("code", "")),
                digest=str(fields.get("digest", "")),
            )
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing") from error
        except TypeError as error:
            raise ValueError(str(error)) from error


def of_this_program() -> str:
    """Name and version, for ``code``."""
    return f"fedward {version('fedward')}"


def dumps(provenance: Provenance) -> str:
    """As text, for metadata or a file."""
    return json.dumps(provenance.to_dict(), indent=2, allow_nan=False) + "\n"


def loads(text: str, *, where: object) -> Provenance:
    """The inverse of `dumps`.

    Args:
        text: of a file or of metadata.
        where: what to name in a message.

    Raises:
        UsageError: if it is not a provenance.
    """
    try:
        fields: object = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("not a record")
        return Provenance.from_dict(cast("dict[str, Any]", fields))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not a provenance ({error})") from error


def read_file(path: Path) -> Provenance:
    """The provenance in a JSON file.

    Raises:
        UsageError: if it is absent, unreadable or not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(
            f"{path}: no provenance ({reason}); synthetic images are used only with a statement of "
            "what they were made from"
        ) from error
    return loads(text, where=path)


def read_weights_file(path: Path) -> Provenance:
    """The provenance that a safetensors file carries.

    Raises:
        UsageError: if the file cannot be read, or carries none.
    """
    try:
        with cast(Any, safe_open(str(path), framework="numpy")) as file:
            metadata = cast("Mapping[str, str]", file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a safetensors file ({error})") from error
    if METADATA_KEY not in metadata:
        raise UsageError(f"{path}: no provenance in it; what it was trained on is unknown")
    return loads(metadata[METADATA_KEY], where=path)


def worst(charges: Sequence[Charge]) -> tuple[Event, ...]:
    """Events of the cohort that paid most; none without charges."""
    together = by_cohort(charges)
    return max(together, key=lambda charge: charge.epsilon).events if together else ()


def by_cohort(charges: Sequence[Charge]) -> tuple[Charge, ...]:
    """One charge for each cohort of each site, with everything that it paid.

    Requests that several charges name are one payment. Where charges differ the smaller delta and
    the weaker unit hold for all of them.
    """
    together: dict[tuple[str, str], Charge] = {}
    for charge in charges:
        key = (charge.site, charge.cohort)
        together[key] = _both(together[key], charge) if key in together else charge
    return tuple(together.values())


def _both(one: Charge, other: Charge) -> Charge:
    for more, less in ((one, other), (other, one)):
        same = (more.delta, more.unit, more.accountant) == (less.delta, less.unit, less.accountant)
        named = set(less.requests) <= set(more.requests)
        if same and named and within(less.events, more.events):
            return more
    return replace(
        other,
        requests=tuple(dict.fromkeys((*one.requests, *other.requests))),
        events=merge((*one.events, *other.events)),
        delta=min(one.delta, other.delta),
        unit="image" if "image" in (one.unit, other.unit) else other.unit,
    )


def combined(sources: Sequence[Provenance]) -> Provenance:
    """The provenance of what was made with all of ``sources``, none of which is left out.

    It is as private as the least private of them; seed, source and code are those of the first.

    Raises:
        ValueError: if there are none.
    """
    first, *others = sources
    kinds = {source.kind for source in sources}
    kind = next(k for k in (Kind.not_private, Kind.private, Kind.public) if k in kinds)
    concerned = [source for source in sources if source.kind is not Kind.public]
    named = all(source.studies for source in concerned)
    reasons = [source.reason for source in (concerned or sources) if source.reason]
    return replace(
        first,
        kind=kind,
        reason="" if kind is Kind.private else "; ".join(dict.fromkeys(reasons)),
        studies=tuple(dict.fromkeys(n for s in concerned for n in s.studies)) if named else (),
        charges=by_cohort([charge for source in concerned for charge in source.charges]),
        digest="" if others else first.digest,
    )


def _hold(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)

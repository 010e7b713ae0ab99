"""The five questions of a round and their answers, as bytes: what a transport carries."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, cast

from common.errors import UsageError
from common.messages import Reason
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.frame import pack, unpack
from common.secure_aggregation.mechanism import Mechanism
from common.secure_aggregation.terms import Terms

_MOST = 1 << 40  # of any number of a mechanism; arithmetic on these is finite


class Step(StrEnum):
    """What a site is asked for."""

    keys = "keys"
    shares = "shares"
    masked = "masked"
    agreement = "agreement"
    reveal = "reveal"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """The server's words to one site (all public but shares, which are sealed for it).

    Attributes:
        step: what is asked for.
        terms: of the round.
        mechanism: that the site is to follow.
        body: the protocol's message; empty in the first step.
    """

    step: Step
    terms: Terms
    mechanism: Mechanism
    body: bytes = field(default=b"", repr=False)

    def to_bytes(self) -> bytes:
        """For the way."""
        header: dict[str, object] = {
            "step": self.step.value,
            "terms": self.terms.to_dict(),
            "mechanism": asdict(self.mechanism),
        }
        return pack("question", header, self.body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Question:
        """The inverse of `to_bytes`.

        Raises:
            Aborted: if it is none.
        """
        header, body = unpack(data, "question")
        fields = cast("dict[str, Any]", header)
        try:
            return cls(
                step=Step(fields["step"]),
                terms=Terms.from_dict(fields["terms"]),
                mechanism=_mechanism(fields["mechanism"]),
                body=body,
            )
        except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
            raise Aborted("a question does not fit the protocol") from error


def _mechanism(fields: dict[str, Any]) -> Mechanism:
    if not all(type(value) is int and 1 <= value < _MOST for value in fields.values()):
        raise ValueError("mechanism: whole numbers")
    return Mechanism(**fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureAnswer:
    """A site's words.

    Attributes:
        site: whose.
        num_patients: of the site.
        reason: why it has no answer; none if it has one.
        spend: its signed spend statement, where something was charged.
        body: the protocol's message; masked, sealed or signed.
    """

    site: str
    num_patients: int
    reason: Reason | None = None
    spend: dict[str, Any] | None = None
    body: bytes = field(default=b"", repr=False)

    def to_bytes(self) -> bytes:
        """For the way."""
        header: dict[str, object] = {
            "site": self.site,
            "num_patients": self.num_patients,
            "reason": None if self.reason is None else self.reason.value,
            "spend": self.spend,
        }
        return pack("answer", header, self.body)

    @classmethod
    def from_bytes(cls, data: bytes) -> SecureAnswer:
        """The inverse of `to_bytes`.

        Raises:
            Aborted: if it is none.
        """
        header, body = unpack(data, "answer")
        fields = cast("dict[str, Any]", header)
        try:
            spend = fields["spend"]
            if type(fields["num_patients"]) is not int or not isinstance(spend, dict | None):
                raise TypeError("of the wrong kind")
            return cls(
                site=str(fields["site"]),
                num_patients=fields["num_patients"],
                reason=None if fields["reason"] is None else Reason(fields["reason"]),
                spend=cast("dict[str, Any] | None", spend),
                body=body,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Aborted("an answer does not fit the protocol") from error

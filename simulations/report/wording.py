"""Numbers and settings as text. Bounds on privacy are rounded up, never down."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

from markupsafe import Markup, escape

_UNSAID = {
    "too_few_patients": "too few patients to say",
    "too_few_with_label": "too few patients with the label to say",
    "too_few_without_label": "too few patients without the label to say",
    "no_spread": "every redraw gave the same",
    "interval_too_wide": "interval too wide to say",
    "mostly_chance": "mostly chance",
    "not_measured": "not measured",
}


def round_up(value: float | None, digits: int = 2) -> str:
    """``value`` with ``digits`` decimals, or as many significant ones below 0.1, rounded up.

    >>> round_up(7.9712), round_up(7.98), round_up(0.00123), round_up(1e-5), round_up(None)
    ('7.98', '7.98', '0.0013', '1e-5', 'infinite')
    """
    if value is None or not math.isfinite(value):
        return "infinite"
    exact = Decimal(repr(float(value)))
    if value == 0 or value >= 0.1:
        return str(exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_CEILING)
    return plain(float(rounded))


def plain(value: object) -> str:
    """A setting as text: short numbers without padding, "not set" for nothing.

    >>> plain(8.0), plain(1e-05), plain(None), plain(True), plain([1, 2.5])
    ('8', '1e-5', 'not set', 'yes', '1, 2.5')
    """
    match value:
        case None:
            return "not set"
        case bool():
            return "yes" if value else "no"
        case float():
            return re.sub(r"e([+-])0+", r"e\1", f"{value:.6g}")
        case list() | tuple():
            return ", ".join(plain(item) for item in value) or "none"
        case _:
            return str(value)


def unbroken(text: str) -> Markup:
    """``text`` escaped, with numbers such as 1e-5 kept on one line.

    >>> unbroken("delta 1e-5 < 1")
    Markup('delta <span class="whole">1e-5</span> &lt; 1')
    """
    number = re.compile(r"[0-9.]+e-[0-9]+")
    return Markup(number.sub(r'<span class="whole">\g<0></span>', str(escape(text))))  # noqa: S704


def decimals(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` decimals; "not measured" for nothing."""
    return "not measured" if value is None else f"{value:.{digits}f}"


def estimate(told: Mapping[str, Any] | None, pattern: str = "{:.3f}") -> str:
    """A figure of ``result.json``, its interval, and why it must not be leant on.

    >>> estimate({"value": 0.5, "ci95": (0.4, 0.61), "unsaid": None}, "{:.2f}")
    '0.50 (0.40 to 0.61)'
    >>> estimate({"value": None, "ci95": None, "unsaid": "too_few_patients"})
    'too few patients to say'
    """
    if not told:
        return "\u2013"
    words = [doubt(told)] if told["unsaid"] else []
    if told["value"] is None:
        return words[0] if words else "\u2013"
    text = pattern.format(told["value"])
    if told["ci95"] is not None:
        low, high = (pattern.format(end) for end in told["ci95"])
        text = f"{text} ({low} to {high})"
    return "; ".join([text, *words])


def doubt(told: Mapping[str, Any]) -> str:
    """Why a figure must not be leant on, in words.

    >>> doubt({"value": 0.5, "unsaid": "mostly_chance"})
    'mostly chance'
    """
    code = str(told["unsaid"])
    return _UNSAID.get(code, code)


def intervals(text: str) -> Markup:
    """``text`` escaped, with each interval in brackets kept on one line.

    >>> intervals("0.571 (0.500 to 0.646) & more")
    Markup('0.571 <span class="whole">(0.500 to 0.646)</span> &amp; more')
    """
    found = re.compile(r"\([-+0-9.]+ to [-+0-9.]+\)")
    return Markup(found.sub(r'<span class="whole">\g<0></span>', str(escape(text))))  # noqa: S704


def site_names(names: Sequence[str], num_sites: int) -> str:
    """Hospitals that share a curve, in a few words."""
    if len(names) == num_sites > 1:
        return f"all {num_sites} hospitals"
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"

"""Numbers and settings as text. Bounds on privacy are rounded up, never down."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal

from markupsafe import Markup, escape


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


def site_names(names: Sequence[str], num_sites: int) -> str:
    """Hospitals that share a curve, in a few words."""
    if len(names) == num_sites > 1:
        return f"all {num_sites} hospitals"
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"

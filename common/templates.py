"""Texts with gaps: units, scripts, nginx and compose files."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from common.errors import UsageError

_PLAIN = re.compile(r"/[A-Za-z0-9/._+@-]*")


def render(package: str, template: str, /, **values: object) -> str:
    """The ``template`` of ``package`` with its gaps filled; a missing value is an error."""
    environment = Environment(  # noqa: S701 - no HTML, and values are checked before
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = resources.files(package).joinpath("templates", template).read_text(encoding="utf-8")
    return environment.from_string(text).render(**values)


def plain_path(what: str, path: Path) -> Path:
    """The absolute form of ``path``, which units, scripts and nginx take without quotes.

    Raises:
        UsageError: It has blanks or other characters that would need them.
    """
    found = path.absolute()
    if not _PLAIN.fullmatch(str(found)):
        raise UsageError(f"{what}={found}: letters, digits and /._+@- only")
    return found

"""A hospital's own YAML files: read strictly, so that a slip is an error and never a default."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml

from common.errors import UsageError

_MAX_CHARACTERS = 1_000_000
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types only: in YAML 1.1 ``off`` is a truth value and ``20:00`` is 1200."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML, but a key given twice is an error."""
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str):
                raise UsageError(f"line {key_node.start_mark.line + 1}: a key must be text")
            if key in found:
                raise UsageError(f"line {key_node.start_mark.line + 1}: {key}: given twice")
            found[key] = self.construct_object(value_node, deep=deep)
        return found


for _name, _pattern, _first in (
    ("null", r"null|~|", "n~"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"{_TAG}{_name}", re.compile(f"^(?:{_pattern})$"), [*_first, *([""] * (_name == "null"))]
    )


def _real(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)))


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 18:
        raise UsageError(f"line {node.start_mark.line + 1}: the number is too long")
    return int(text)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(f"{_TAG}float", _real)
_Loader.add_constructor(f"{_TAG}int", _whole)
_Loader.add_constructor(f"{_TAG}map", _mapping)


def parse(text: str) -> Fields:
    """The mapping that ``text`` holds.

    >>> parse("a: {b: 1e-5, c: off}").inside("a").text("c")
    'off'

    Raises:
        UsageError: It is no YAML, no mapping, or gives a key twice.
    """
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"longer than {_MAX_CHARACTERS:,} characters")
    try:
        value: object = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise UsageError(f"{line}{error.problem or 'not YAML'}") from error
    except UsageError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        # a tag such as !!timestamp hands the text to a parser that raises what it likes
        raise UsageError("not YAML") from error
    if not isinstance(value, dict):
        raise UsageError("not a list of settings (KEY: VALUE)")
    return Fields(where="", values=cast("dict[str, Any]", value))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """Settings by name, with the name of where they stand for complaints."""

    where: str
    values: Mapping[str, Any]

    def only(self, *names: str) -> None:
        """Refuse settings that are not among ``names``."""
        unknown = sorted(set(self.values) - set(names))
        if unknown:
            raise UsageError(
                f"{self.where}{unknown[0]}: unknown; there are {', '.join(sorted(names))}"
            )

    def has(self, name: str) -> bool:
        """Whether the setting is given and not null."""
        return self.values.get(name) is not None

    def text(self, name: str) -> str:
        """A setting that must be text."""
        return self._checked(name, str, "text")

    def flag(self, name: str, *, default: bool) -> bool:
        """A setting that must be true or false."""
        return self._checked(name, bool, "true or false") if name in self.values else default

    def whole(self, name: str, *, least: int) -> int:
        """A setting that must be a whole number of at least ``least``."""
        value = self._checked(name, int, "a whole number")
        if isinstance(value, bool) or value < least:
            raise self._wrong(name, f"must be a whole number, at least {least}")
        return value

    def number(self, name: str, *, above: float = 0.0, at_most: float = math.inf) -> float:
        """A finite number above ``above`` and at most ``at_most``."""
        value = self._given(name)
        bound = "" if at_most == math.inf else f" and at most {at_most:g}"
        sound = isinstance(value, int | float) and not isinstance(value, bool)
        if not sound or not math.isfinite(value) or not above < value <= at_most:
            raise self._wrong(name, f"must be a number above {above:g}{bound}")
        return float(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A setting that must be a list of texts."""
        found: list[object] = self._checked(name, list, "a list of texts")
        if not all(isinstance(one, str) and one for one in found):
            raise self._wrong(name, "must be a list of texts")
        return tuple(cast("list[str]", found))

    def inside(self, name: str) -> Fields:
        """A setting that has settings of its own."""
        return Fields(where=f"{self.where}{name}.", values=self._checked(name, dict, "settings"))

    def _given(self, name: str) -> Any:
        if name not in self.values:
            raise UsageError(f"{self.where}{name}: missing")
        return self.values[name]

    def _checked(self, name: str, kind: type, words: str) -> Any:
        value = self._given(name)
        if not isinstance(value, kind):
            raise self._wrong(name, f"must be {words}")
        return value

    def _wrong(self, name: str, remedy: str) -> UsageError:
        return UsageError(f"{self.where}{name}={_short(self.values[name])}: {remedy}")


def _short(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."

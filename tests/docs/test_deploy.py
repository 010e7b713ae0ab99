"""Every command of the runbook is one that `fedward` has, with options that it has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from simulations.cli import app

ROOT = Path(__file__).parents[2]
PAGES = ("deploy/README.md", "docs/deployment.md", "docs/agent.md", "docs/policy.md")


def commands(page: str) -> list[list[str]]:
    """Lines of blocks, and words between backquotes, that begin a command of ours."""
    text = (ROOT / page).read_text()
    found: list[str] = []
    for number, part in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        lines = part.splitlines() if number % 2 else re.findall(r"`([^`\n]+)`", part)
        found += [one[0] for line in lines if (one := re.search(r"(?<![\w/.-])fedward .*", line))]
    plain = [one.split("#")[0].split(" > ")[0].split(" && ")[0] for one in found]
    return [shlex.split(one)[1:] for one in plain if re.match(r"fedward [a-z-]+( |$)", one)]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    found, rest = typer.main.get_command(app), list(words)
    while rest and hasattr(found, "commands"):
        assert rest[0] in found.commands, words
        found = found.commands[rest.pop(0)]
    return found, rest


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_the_page_is_there(page: str) -> None:
    listed = commands(page)
    assert len(listed) >= 2, "the page has commands"
    for words in listed:
        found, rest = command_of(words)
        options = {name for one in found.params for name in (*one.opts, *one.secondary_opts)}
        used = {word for word in rest if word.startswith("--")}
        assert used <= options, words


def test_what_is_no_command_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        command_of(["consortium", "dissolve"])

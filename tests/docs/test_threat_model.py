"""Each threat that the page calls defended names a test, and each test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "threat-model.md"
AGENT = ROOT / "tests" / "client" / "agent"  # of names without a folder
E = ROOT / "tests" / "end_to_end" / "deployment" / "test_deployment.py"

Cited = tuple[Path, str]  # the name is empty where a whole file or folder is cited


def rows(text: str) -> list[list[str]]:
    """The cells of each row below the heading of what is defended."""
    part = text.split("## What is defended")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells[1:] if not set(row[0]) <= {"-"}]


def cited(cell: str) -> list[Cited]:
    """What a cell cites: ``E `test` ``, ``FILE``, ``FILE::test``, ``::test`` of the file before."""
    found: list[Cited] = []
    for of_e, word in re.findall(r"(E )?`([^`]+)`", cell):
        file, _, name = word.partition("::")
        if of_e or (not file.endswith(".py") and file.startswith("test_")):
            found.append((E, file))
        elif file:
            found.append((ROOT / file if "/" in file else AGENT / file, name))
        else:
            found.append((found[-1][0], name))
    return found


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def problem(one: Cited) -> str:
    path, name = one
    if not path.exists():
        return f"{path.relative_to(ROOT)}: no such file"
    if name and name not in names_in(path):
        return f"{path.relative_to(ROOT)}: no {name}"
    return ""


ROWS = rows(PAGE.read_text())


def test_the_table_is_read() -> None:
    assert len(ROWS) > 15
    assert {len(row) for row in ROWS} == {4}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_what_is_defended_is_shown_by_tests_that_are_there(row: list[str]) -> None:
    found = cited(row[3])
    assert found, "a threat without a test"
    assert [said for one in found if (said := problem(one))] == []


def test_what_is_not_there_is_found() -> None:
    cell = "`test_gate.py::test_nothing`, `::test_less`; E `test_never`; `tests/nowhere.py`"
    assert [problem(one) for one in cited(cell)] == [
        "tests/client/agent/test_gate.py: no test_nothing",
        "tests/client/agent/test_gate.py: no test_less",
        "tests/end_to_end/deployment/test_deployment.py: no test_never",
        "tests/nowhere.py: no such file",
    ]

from __future__ import annotations

from client.data.check.finding import Finding, Severity, ordered


def _finding(code: str, severity: Severity) -> Finding:
    return Finding(code=code, severity=severity, text="t", remedy="r", rows=(1,))


def test_the_worst_comes_first_and_equals_keep_their_order() -> None:
    given = [
        _finding("a", Severity.note),
        _finding("b", Severity.blocks),
        _finding("c", Severity.warning),
        _finding("d", Severity.blocks),
    ]
    assert [finding.code for finding in ordered(given)] == ["b", "d", "c", "a"]


def test_rows_are_not_in_the_repr() -> None:
    assert "rows" not in repr(_finding("a", Severity.note))

from __future__ import annotations

from collections.abc import Callable

from client.data.check.coverage import unsaid
from client.data.study import Record

Make = Callable[..., Record]


def test_what_is_not_said(make_record: Make) -> None:
    (finding,) = unsaid([make_record(1, groups={"sex": "F"})])
    assert "does not say the age or hospital of" in finding.text
    assert finding.severity.value == "note"
    assert unsaid([make_record(1, groups={"sex": "F", "age": "0-30"}, site="A")]) == []

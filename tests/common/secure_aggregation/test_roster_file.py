"""The roster's file: what hospitals pin, and what none of them takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UsageError
from common.secure_aggregation import roster_file

KEYS = {"st-mary": "ab" * 32, "st-luke": "cd" * 32, "st-anne": "0f" * 32}


def test_what_is_written_is_read_again_with_the_same_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    made = roster_file.make("north", KEYS)
    path.write_text(made.dumps())
    assert roster_file.read(path) == made
    fields = json.loads(made.dumps())
    fields["hospitals"] = dict(reversed(fields["hospitals"].items()))
    path.write_text(json.dumps(dict(reversed(fields.items()))))
    assert roster_file.read(path).fingerprint == made.fingerprint
    assert len(made.fingerprint) == 39


def test_another_fingerprint_for_every_other_name_and_key() -> None:
    others = [
        KEYS,
        {**KEYS, "st-mary": "ac" * 32},
        {**KEYS, "st-john": "11" * 32},
        {"st-mary": KEYS["st-luke"], "st-luke": KEYS["st-mary"], "st-anne": KEYS["st-anne"]},
        {name: key for name, key in KEYS.items() if name != "st-anne"},
    ]
    assert len({roster_file.make("north", keys).fingerprint for keys in others}) == len(others)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("fedward.roster/1", "fedward.roster/2", "must be fedward.roster/1"),
        ('"north"', "7", "must name a consortium and its hospitals"),
        ('"consortium": "north",', "", "missing or unknown"),
        ('"st-mary"', '"../mary"', "letters, digits"),
        ('"st-mary"', '"st-luke"', "no JSON"),
        ("ab" * 32, "AB" * 32, "64 lower-case hexadecimal digits"),
        ("ab" * 32, "cd" * 32, "two hospitals have one key"),
        ('"' + "ab" * 32 + '"', "12", "a key must be text"),
        ('{\n    "st', '[{\n    "st', "no JSON"),
    ],
)
def test_a_roster_that_is_none_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    path = tmp_path / "roster.json"
    text = roster_file.make("north", KEYS).dumps()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=complaint) as error:
        roster_file.read(path)
    assert "\n" not in str(error.value)


def test_one_hospital_is_no_roster(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 to 100 can take part"):
        roster_file.make("north", {"st-mary": "ab" * 32})
    with pytest.raises(UsageError, match="No such file"):
        roster_file.read(tmp_path / "none.json")

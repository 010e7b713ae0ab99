"""From lines and rows with times to where a round's time went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import RunFailed
from simulations.loopback import timeline
from simulations.loopback.timeline import PARTS, Ear, Heard, Round, SiteRound, Span

SAID = (
    ("supernode", "INFO :      Receiving: train message (ID: 1)"),
    ("supernode", "INFO :      Received successfully"),
    ("gate", "INFO admitted bundle sha256=00"),
    ("superexec", "INFO started `flwr-clientapp` as process 7"),
    ("agent", "asked"),
    ("ledger", "reserved"),
    ("ledger", "committed"),
    ("agent", "answered"),
    ("supernode", "INFO :      Sending: train message (ID: 2)"),
    ("supernode", "INFO :      Sent successfully"),
)


def way(moments: list[float]) -> tuple[list[Heard], Round, SiteRound]:
    """A round from 0 to the last moment, on which what `SAID` has happened at the others."""
    at = moments
    lines = [
        Heard(time=at[index], source=f"north-{source}", text=text)
        for index, (source, text) in enumerate(SAID)
        if source not in {"agent", "ledger"}
    ]
    found = Round(number=2, span=Span(begin=0.0, end=moments[-1]), last="north")
    site = SiteRound(asked=Span(begin=at[4], end=at[7]), trained=Span(begin=at[5], end=at[6]))
    return lines, found, site


@given(st.lists(st.floats(0.001, 10), min_size=11, max_size=11))
def test_parts_are_what_lies_between_and_add_up_to_the_round(seconds: list[float]) -> None:
    moments = [sum(seconds[: index + 1]) for index in range(11)]
    found = timeline.parts(*way(moments))
    assert list(found) == list(PARTS)
    assert sum(found.values()) == pytest.approx(moments[-1])
    plain = dict(zip(PARTS, [*seconds[:5], 0, 0, *seconds[8:]], strict=True))
    plain |= {"agent": seconds[5] + seconds[7], "training": seconds[6]}
    assert found == pytest.approx(plain)


def test_a_task_that_is_taken_before_its_message_is_whole_waited_for_nothing() -> None:
    lines, found, site = way([1.0, 5.0, 3.0, 6.0, *(float(index + 7) for index in range(7))])
    said = timeline.parts(lines, found, site)
    assert (said["transfer_in"], said["task_poll"], said["process_start"]) == (4.0, 0.0, 1.0)
    assert sum(said.values()) == 13.0


def test_another_hospitals_and_another_rounds_lines_do_not_count() -> None:
    lines, found, site = way([float(index + 1) for index in range(11)])
    others = [
        Heard(time=0.1, source="south-supernode", text="Receiving: train message"),
        Heard(time=-3.0, source="north-supernode", text="Receiving: train message"),
        Heard(time=0.2, source="north-supernode", text="Receiving: query message"),
    ]
    assert timeline.parts([*others, *lines], found, site)["supernode_poll"] == 1.0


def test_a_line_that_is_missing_is_named() -> None:
    lines, found, site = way([float(index + 1) for index in range(11)])
    with pytest.raises(RunFailed, match="north-gate does not say 'admitted bundle'"):
        timeline.parts([one for one in lines if one.source != "north-gate"], found, site)


def event(at: float, **fields: Any) -> Heard:
    return Heard(time=at, source="events", text=json.dumps(fields))


def test_a_round_begins_where_the_one_before_ends_and_knows_who_was_last() -> None:
    found = timeline.rounds(
        [
            event(1, event="planned"),
            event(2, event="site", round=1, site="a"),
            event(3, event="site", round=1, site="b"),
            event(4, event="round", round=1),
            event(6, event="site", round=2, site="a"),
            event(7, event="round", round=2),
            event(8, event="ended"),
        ]
    )
    assert [(one.number, one.seconds, one.last) for one in found] == [(1, 3, "b"), (2, 3, "a")]
    with pytest.raises(RunFailed, match="round 1: nobody answered"):
        timeline.rounds([event(1, event="planned"), event(2, event="round", round=1)])


def test_an_answer_is_paired_with_its_question() -> None:
    stamp = "2026-01-01T00:00:0{}+00:00"
    rows = [
        {"seq": 1, "kind": "audit_opened", "time": stamp.format(0)},
        {"seq": 2, "kind": "asked", "what": "describe", "time": stamp.format(1)},
        {"seq": 3, "kind": "asked", "what": "train", "round": 4, "time": stamp.format(2)},
        {"seq": 4, "kind": "answered", "asked": 2, "time": stamp.format(3)},
        {"seq": 5, "kind": "answered", "asked": 3, "time": stamp.format(5)},
    ]
    [(number, span)] = timeline.asked_in(rows).items()
    assert (number, span.end - span.begin) == (4, 3)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=6))
def test_time_that_several_cover_counts_once(given: list[tuple[int, int]]) -> None:
    spans = [Span(begin=begin, end=begin + length) for begin, length in given]
    seconds = {second for one in spans for second in range(int(one.begin), int(one.end))}
    assert timeline.covered(spans) == len(seconds)


def test_lines_are_noted_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    ear = Ear(files={"one": path})
    ear.listen()
    path.write_text("first\nsec")
    ear.listen()
    assert [one.text for one in ear.lines] == ["first"]
    with path.open("a") as file:
        file.write("ond\nthird\n")
    ear.listen()
    ear.listen()
    ear.close()
    assert [(one.source, one.text) for one in ear.lines] == [
        ("one", "first"),
        ("one", "second"),
        ("one", "third"),
    ]
    assert sorted(one.time for one in ear.lines) == [one.time for one in ear.lines]

from __future__ import annotations

import pytest

from common.errors import LedgerError
from common.privacy.chain import Kind, Replay, Row, State, dump_events, make_row
from common.privacy.events import GaussianRelease
from common.privacy.keys import SiteKey

KEY = SiteKey(bytes(range(32)))
RELEASE = GaussianRelease(noise_multiplier=5.0, count=2)


def rows(*contents: dict[str, object]) -> list[tuple[int, Row]]:
    """Rows that are well formed and signed, whatever they say."""
    made: list[tuple[int, Row]] = []
    previous = "0" * 64
    for seq, content in enumerate(contents, start=1):
        row = make_row({"seq": seq, "previous": previous, "time": "", **content}, KEY)
        made.append((seq, row))
        previous = row.hash
    return made


OPENED: dict[str, object] = {"kind": Kind.opened.value, "cohort": "c"}


def reserve(name: str, *events: GaussianRelease) -> dict[str, object]:
    dumped = dump_events(events or [RELEASE])
    kind = Kind.reserve.value
    return {"kind": kind, "request_id": name, "events": dumped, "purpose": "", "origin": ""}


def end(kind: Kind, name: str, *events: GaussianRelease) -> dict[str, object]:
    dumped = dump_events(events)
    return {"kind": kind.value, "request_id": name, "events": dumped, "reason": ""}


def test_what_counts_follows_from_the_rows() -> None:
    replay = Replay(public_key=KEY.public_key)
    one = GaussianRelease(noise_multiplier=5.0, count=1)
    replay.extend(
        rows(
            OPENED,
            reserve("a"),
            reserve("b"),
            reserve("c"),
            end(Kind.commit, "a", one),
            end(Kind.abandon, "b"),
        )
    )
    assert replay.spent() == (one, RELEASE)
    assert replay.merged(State.reserved) == (RELEASE,)
    assert replay.merged(State.committed) == (one,)
    three = GaussianRelease(noise_multiplier=5.0, count=3)
    assert replay.merged(State.reserved, State.committed) == (three,)
    assert replay.num_open() == 1
    assert len(replay.hashes) == replay.length == 6


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ([reserve("a")], "wrong kind"),
        ([OPENED, OPENED], "wrong kind"),
        ([OPENED, reserve("a"), reserve("a")], "twice"),
        ([OPENED, end(Kind.commit, "a")], "not open"),
        (
            [OPENED, reserve("a"), end(Kind.abandon, "a"), end(Kind.commit, "a", RELEASE)],
            "not open",
        ),
        ([OPENED, reserve("a"), end(Kind.commit, "a", RELEASE, RELEASE)], "more than was reserved"),
        ([OPENED, {"kind": "refund"}], "cannot be understood"),
        ([OPENED, {"kind": "reserve"}], "cannot be understood"),
        ([OPENED, {**reserve("a"), "events": [{"kind": "laplace"}]}], "cannot be understood"),
    ],
)
def test_signed_nonsense_is_refused(contents: list[dict[str, object]], found: str) -> None:
    with pytest.raises(LedgerError, match=found):
        Replay(public_key=KEY.public_key).extend(rows(*contents))


def test_a_position_that_contradicts_the_row_is_refused() -> None:
    first, second = rows(OPENED, reserve("a"))
    swapped = make_row({**second[1].fields, "seq": 3}, KEY)
    with pytest.raises(LedgerError, match="does not follow"):
        Replay(public_key=KEY.public_key).extend([first, (2, swapped)])

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.config import Config, FederationConfig, Mechanism, PrivacyConfig
from simulations.progress import Progress, complain
from simulations.run_dir import RunDir

RUN = RunDir(path=Path("runs/x"))


def config(**privacy: Any) -> Config:
    return Config(
        privacy=PrivacyConfig(**privacy), federation=FederationConfig(num_sites=3, rounds=3)
    )


def site(status: str, epsilon: float | None, reason: str | None = None) -> dict[str, Any]:
    return {"status": status, "epsilon": epsilon, "reason": reason}


def planned(mechanism: str = "dp_sgd", first_round: int = 1) -> dict[str, Any]:
    return {
        "event": "planned",
        "sites": {"hospital-1": 200, "hospital-2": 150, "hospital-3": 90},
        "rounds": 3,
        "first_round": first_round,
        "recipe": {
            "mechanism": mechanism,
            "noise_multiplier": 1.2352,
            "delta": 1e-5,
            "unit": "patient",
            "accountant": "pld",
        },
    }


def round_of(number: int, auroc: float | None, *sites: dict[str, Any]) -> list[dict[str, Any]]:
    names = {f"hospital-{n}": record for n, record in enumerate(sites, start=1)}
    answers = [
        {"event": "site", "round": number, "site": name, **record}
        for name, record in names.items()
        if record["reason"] != "no_reply"  # nobody hears of these before the round is over
    ]
    evaluation = None if auroc is None else {"split": "val", "auroc": auroc}
    end = {
        "event": "round",
        "round": number,
        "seconds": 30.0,
        "evaluation": evaluation,
        "sites": names,
    }
    return [*answers, end]


def done(*, private: bool = True) -> dict[str, Any]:
    return {
        "event": "done",
        "result": {
            "state": "completed-with-missing-sites",
            "final": {"test": {"auroc": 0.8123, "auroc_ci95": [0.7, 0.9], "num_patients": 200}},
            "privacy": {
                "private": private,
                "epsilon_federation": 7.97 if private else None,
                "delta": 1e-5,
                "unit": "patient",
                "accountant": "pld",
            },
        },
    }


REFUSED = site("refused", 5.0, "budget_exceeded")
EVENTS = [
    {"event": "stage", "text": "reading the study phantom"},
    {"event": "stage", "text": "starting Ray"},
    planned(),
    *round_of(1, 0.6, site("trained", 5.0), site("trained", 5.0), site("failed", None, "no_reply")),
    *round_of(2, 0.7, site("trained", 6.5), REFUSED, site("failed", 5.0, "internal_error")),
    *round_of(3, 0.75, site("trained", 7.97), REFUSED, site("trained", 7.97)),
    {"event": "stage", "text": "testing the final model"},
    done(),
]
PLAIN = """\
reading the study phantom ...
starting Ray ...
3 sites, 3 rounds, noise multiplier 1.24; epsilon at delta 1.0e-05, patient level, PLD accountant
round 1/3  validation AUROC 0.600  hospital-1 epsilon 5.00/8, hospital-2 epsilon 5.00/5, \
hospital-3 epsilon ?/8 (failed: no_reply)  about 60 s left
round 2/3  validation AUROC 0.700  hospital-1 epsilon 6.50/8, hospital-2 epsilon 5.00/5 \
(refused: budget_exceeded), hospital-3 epsilon 5.00/8 (failed: internal_error)  about 30 s left
round 3/3  validation AUROC 0.750  hospital-1 epsilon 7.97/8, hospital-2 epsilon 5.00/5 \
(refused: budget_exceeded), hospital-3 epsilon 7.97/8
testing the final model ...
Test AUROC 0.812 (95 % interval 0.700-0.900, 200 held-out patients); epsilon 7.970 at delta \
1.0e-05, patient level, PLD accountant
State: completed-with-missing-sites
Report: runs/x/report.html
Result: runs/x/result.json
"""


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(config(site_budgets=["hospital-2:5"]), RUN) as progress:
        for event in EVENTS:
            progress.show(event)
    out, err = capsys.readouterr()
    assert [line.rstrip() for line in out.splitlines()] == PLAIN.splitlines()
    assert err == ""
    assert "\x1b" not in out


class Screen:
    """A terminal of 100 columns; `now` is what a refresh draws."""

    def __init__(self, config: Config) -> None:
        self.file = StringIO()
        self.console = Console(
            force_terminal=True, file=self.file, width=100, color_system=None, _environ={}
        )
        self.progress = Progress(config, RUN, self.console)

    def now(self) -> str:
        with self.console.capture() as shown:
            self.console.print(self.progress._render())
        return shown.get()

    def row(self, name: str) -> list[str]:
        (line,) = [line for line in self.now().splitlines() if name in line]
        return [cell.strip() for cell in line.split("│")[1:-1]]


def test_the_live_table_renders_after_every_event() -> None:
    screen = Screen(config(site_budgets=["hospital-2:5"]))
    with screen.progress as progress:
        assert "starting ..." in screen.now()
        for event in EVENTS:
            progress.show(event)
            assert progress._live is not None
            progress._live.refresh()
            assert screen.now().strip() or event["event"] == "done"
    text = screen.file.getvalue()
    for words in (
        "reading the study phantom",
        "hospital-3",
        "6.50/8",
        "refused (budget_exceeded)",
        "failed (internal_error)",
        "validation AUROC 0.750",
        "about 30 s left",
        "Test AUROC 0.812 (95 % interval 0.700-0.900",
        "epsilon 7.970 at delta 1.0e-05, patient level, PLD accountant",
        "Report: runs/x/report.html",
    ):
        assert words in text


def test_the_live_table_shows_where_each_site_stands() -> None:
    screen = Screen(config(site_budgets=["hospital-2:5"]))
    show = screen.progress.show
    show(planned())
    assert screen.now().startswith("round 1/3")
    assert screen.row("hospital-1") == ["hospital-1", "200", "?/8", "-", "in training"]
    first, second = (
        round_of(1, 0.61, site("trained", 5.0), REFUSED, site("failed", None, "no_reply")),
        round_of(2, None, site("trained", 6.5), REFUSED, site("trained", 5.0)),
    )
    show(first[0])
    assert screen.row("hospital-1") == ["hospital-1", "200", "5.00/8", "-", "trained"]
    assert screen.row("hospital-2") == ["hospital-2", "150", "?/5", "-", "in training"]
    show(first[1])
    assert screen.row("hospital-2") == [
        "hospital-2",
        "150",
        "5.00/5",
        "-",
        "refused (budget_exceeded)",
    ]
    first[-1]["sites"]["hospital-1"] |= {"stops_after": 2}
    first[-1]["sites"]["hospital-2"] = REFUSED | {"stops_after": 1}
    show(first[-1])
    assert screen.row("hospital-1")[3] == "after round 2"
    assert screen.row("hospital-2")[3] == "spent"
    assert "round 2/3  validation AUROC 0.610  about 60 s left" in screen.now()
    # The next round asks all but the one that left.
    assert screen.row("hospital-1")[-1] == "in training"
    assert screen.row("hospital-2")[-1] == "refused (budget_exceeded)"
    assert screen.row("hospital-3")[-1] == "in training"
    for event in second:
        show(event)
    assert "round 3/3  validation AUROC 0.610" in screen.now()
    assert screen.row("hospital-3")[2] == "5.00/8"


def test_a_resumed_run_starts_where_it_stopped() -> None:
    screen = Screen(config())
    screen.progress.show(planned(first_round=3))
    assert screen.now().startswith("round 3/3")
    for event in round_of(3, 0.7, site("trained", 8.0), REFUSED, site("trained", 8.0)):
        screen.progress.show(event)
    assert "left" not in screen.now()


def test_fixed_noise_without_a_cap_shows_no_budget() -> None:
    screen = Screen(config(noise_multiplier=1.0))
    screen.progress.show(planned())
    for event in round_of(1, 0.6, *[site("trained", 5.0)] * 3)[:1]:
        screen.progress.show(event)
    assert screen.row("hospital-1")[2] == "5.00"


def test_without_privacy_every_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    open_config = config(mechanism=Mechanism.none)
    events = [planned("none"), *round_of(1, 0.9, *[site("trained", None)] * 3), done(private=False)]
    screen = Screen(open_config)
    with Progress(open_config, RUN) as progress:
        for event in events[:-1]:
            screen.progress.show(event)
        assert screen.row("hospital-1")[2] == "inf"
        for event in events:
            progress.show(event)
    out = capsys.readouterr().out
    assert "NO PRIVACY" in out
    assert "hospital-1 epsilon inf" in out
    assert "NOT private (epsilon infinite)" in out


def test_long_runs_count_minutes() -> None:
    screen = Screen(config())
    screen.progress.show(planned())
    events = round_of(1, 0.6, *[site("trained", 5.0)] * 3)
    screen.progress.show({**events[-1], "seconds": 300.0})
    assert "about 10 min left" in screen.now()


def test_events_of_no_interest_are_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(config(), RUN) as progress:
        progress.show({"event": "failed", "message": "x"})
        progress.show({"event": "done", "result": {"state": "failed"}})
    assert capsys.readouterr().out.splitlines()[0] == "State: failed"


def test_complaints_are_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    complain("privacy.epsilon=0: must be above 0")
    assert capsys.readouterr() == ("", "Error: privacy.epsilon=0: must be above 0\n")


def test_strangers_late_replies_and_the_end_of_a_budget_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    running_out = site("trained", 5.0) | {"stops_after": 2}
    events = [
        planned(),
        {"event": "stranger", "site": "clinic-9", "problem": "not an approved site"},
        *round_of(1, 0.6, running_out, site("trained", 5.0), site("trained", 5.0)),
        {"event": "late", "site": "hospital-3", "round": 1},
    ]
    with Progress(config(), RUN) as progress:
        for event in events:
            progress.show(event)
    said = capsys.readouterr().out
    assert "clinic-9 is never asked to train: not an approved site" in said
    assert "hospital-1 epsilon 5.00/8 (budget ends after round 2), hospital-2 eps" in said
    assert "hospital-3 answered round 1 too late" in said

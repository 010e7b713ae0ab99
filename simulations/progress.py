"""What a person sees while a run goes on: a live table, or plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.config import Config
from common.messages import Reason
from simulations.run_dir import RunDir

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows events of a run as they come, on ``console`` (by default standard output)."""

    def __init__(self, config: Config, run_dir: RunDir, console: Console | None = None) -> None:
        self._config = config
        self._run_dir = run_dir
        self._console = console or Console()
        self._live: Live | None = None
        self._sites: dict[str, dict[str, Any]] = {}
        self._asked: set[str] = set()
        self._stage = "starting"
        self._meaning = ""
        self._round = 0
        self._auroc: float | None = None
        self._seconds: list[float] = []
        self._began = time.monotonic()
        self._part_text = ""
        self._part_began = self._last_line = self._began

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._render)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        match event["event"]:
            case "stage":
                self._stage = event["text"]
                self._began = time.monotonic()
                self._line(f"{self._stage} ...")
            case "planned":
                self._plan(event)
            case "asked":
                self._asked = set(event["sites"])
            case "site":
                self._site(event)
            case "stranger":
                self._say(f"{event['site']} is never asked to train: {event['problem']}")
            case "late":
                self._say(f"{event['site']} answered round {event['round']} too late")
            case "round":
                self._finish_round(event)
            case "pretraining":
                self._pretraining(event)
            case "part":
                self._part(event)
            case "done":
                self._done(event["result"])
            case _:
                pass

    def _plan(self, event: dict[str, Any]) -> None:
        self._round = event["first_round"]
        self._stage = "training"
        self._began = time.monotonic()
        self._asked = set(event["sites"])
        for name, num_patients in event["sites"].items():
            self._sites[name] = {
                "num_patients": num_patients,
                "epsilon": None,
                "status": "waiting",
                "reason": None,
            }
        recipe = event["recipe"]
        self._meaning = "NO PRIVACY"
        if recipe["mechanism"] != "none":
            self._meaning = (
                f"noise multiplier {recipe['noise_multiplier']:.3g}; epsilon at delta "
                f"{recipe['delta']:.1e}, {recipe['unit']} level, {recipe['accountant'].upper()} "
                "accountant"
            )
        self._line(f"{len(self._sites)} sites, {event['rounds']} rounds, {self._meaning}")

    def _part(self, event: dict[str, Any]) -> None:
        text, done, total = event["text"], event["done"], event["total"]
        now = time.monotonic()
        if text != self._part_text:
            self._part_text, self._part_began, self._last_line = text, now, now
        left = (now - self._part_began) / max(done, 1) * (total - done)
        self._stage = f"{text}: {done} of {total}, about {left:.0f} s left"
        if now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._line(self._stage)

    def _pretraining(self, event: dict[str, Any]) -> None:
        done, epochs = event["epoch"], event["epochs"]
        seconds = (time.monotonic() - self._began) / done * (epochs - done)
        self._stage = f"synthetic images, epoch {done}/{epochs}, about {seconds:.0f} s left"
        self._line(self._stage)

    def _site(self, event: dict[str, Any]) -> None:
        self._sites[event["site"]] |= {k: event[k] for k in ("epsilon", "status", "reason")}

    def _finish_round(self, event: dict[str, Any]) -> None:
        for name, record in event["sites"].items():
            self._sites[name] |= record
        self._seconds.append(event["seconds"])
        evaluation = event["evaluation"]
        self._auroc = evaluation["auroc"] if evaluation else self._auroc
        self._round = event["round"] + 1
        self._began = time.monotonic()
        auroc = "" if self._auroc is None else f"validation AUROC {self._auroc:.3f}  "
        sites = ", ".join(
            f"{name} {self._epsilon(name)}{self._remark(name)}" for name in sorted(event["sites"])
        )
        self._line(
            f"round {event['round']}/{self._config.federation.rounds}  {auroc}"
            f"{sites}  {self._time_left()}"
        )
        for site in self._sites.values():
            if not (site["reason"] and Reason(site["reason"]).for_good):  # asked again
                site |= {"status": "waiting", "reason": None}

    def _done(self, result: dict[str, Any]) -> None:
        self._stage = "done"
        final = result.get("final")
        if final is not None:
            test = final["test"]
            low, high = test["auroc_ci95"]
            self._say(
                f"Test AUROC {test['auroc']:.3f} (95 % interval {low:.3f}-{high:.3f}, "
                f"{test['num_patients']} held-out patients); {self._privacy(result)}"
            )
        self._say(f"State: {result['state']}")
        if "made" in result:
            self._made(result)
        else:
            self._say(f"Report: {self._run_dir.report}")
        self._say(f"Result: {self._run_dir.result}")

    def _made(self, result: dict[str, Any]) -> None:
        made, folder = result["made"], self._run_dir
        self._say(f"{made['num_images']} images: {folder.images}; {self._privacy(result)}")
        self._say(f"Picture: {folder.grid}")
        if made["quality"] is not None:
            self._say(f"Quality, computed from patients without noise: {folder.quality}")

    def _privacy(self, result: dict[str, Any]) -> str:
        privacy = result["privacy"]
        if not privacy["private"]:
            return "NOT private (epsilon infinite)"
        return (
            f"epsilon {privacy['epsilon_federation']:.3f} at delta {privacy['delta']:.1e}, "
            f"{privacy['unit']} level, {privacy['accountant'].upper()} accountant"
            f"{_trust(privacy)}"
        )

    def _epsilon(self, name: str) -> str:
        epsilon = self._sites[name]["epsilon"]
        budget = self._config.privacy.budget_of(name)
        if not self._config.privacy.private:
            return "epsilon inf"
        spent = "?" if epsilon is None else f"{epsilon:.2f}"
        return f"epsilon {spent}" + (f"/{budget:g}" if budget < float("inf") else "")

    def _remark(self, name: str) -> str:
        site = self._sites[name]
        if site["status"] == "trained" and site.get("stops_after"):
            return f" (budget ends after round {site['stops_after']})"
        return "" if site["status"] == "trained" else f" ({site['status']}: {site.get('reason')})"

    def _ending(self, name: str) -> str:
        """When the site's budget will be spent, as far as the server can tell."""
        last = self._sites[name].get("stops_after")
        if last is None:
            return "-"
        return "spent" if last < self._round else f"after round {last}"

    def _time_left(self) -> str:
        left = self._config.federation.rounds - self._round + 1
        if not self._seconds or left <= 0:
            return ""
        seconds = left * sum(self._seconds) / len(self._seconds)
        return (
            f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"
        )

    def _line(self, text: str) -> None:
        if self._live is None:
            print(text, file=self._console.file, flush=True)

    def _say(self, text: str) -> None:
        if self._live is None:
            print(text, file=self._console.file, flush=True)
        else:
            self._console.print(text, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        rounds = self._config.federation.rounds
        elapsed = time.monotonic() - self._began
        if self._stage == "done":
            return Group()
        if not self._sites:
            return Group(Text(f"{self._stage} ... {elapsed:.0f} s"))
        table = Table("site", "patients", "epsilon", "budget ends", "state", caption=self._meaning)
        for name in sorted(self._asked):
            site = self._sites[name]
            state = site["status"] if site["status"] != "waiting" else "in training"
            reason = site.get("reason")
            table.add_row(
                name,
                str(site["num_patients"] or "?"),
                self._epsilon(name).removeprefix("epsilon "),
                self._ending(name),
                f"{state} ({reason})" if reason else state,
            )
        auroc = "" if self._auroc is None else f"  validation AUROC {self._auroc:.3f}"
        head = f"round {min(self._round, rounds)}/{rounds}{auroc}  {self._time_left()}"
        return Group(Text(head, style="bold"), table, Text(f"{self._stage}, {elapsed:.0f} s"))


def complain(message: str) -> None:
    """One line for bad input."""
    print(f"Error: {message}", file=sys.stderr)


def _trust(privacy: dict[str, Any]) -> str:
    """What holds where noise is shared and no other hospital can be trusted."""
    if privacy.get("secure_aggregation") is None:
        return ""
    spent = [site.get("epsilon_alone", site["epsilon"]) for site in privacy["sites"].values()]
    alone = "infinite" if None in spent else f"{max(spent):.3f}"
    return f", under secure aggregation (epsilon {alone} if no other hospital can be trusted)"

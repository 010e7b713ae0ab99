"""Kills processes that use one ledger; prints what it found as JSON.

Run as a program of its own, so that forking happens in a process with a single thread. Each of two
workers reserves, "trains" and commits, writing to a journal that shares nothing with the ledger;
one of them at a time is killed at a random moment and replaced.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from common.errors import BudgetExceeded
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.events import GaussianRelease
from common.privacy.keys import SiteKey
from common.privacy.ledger import Ledger
from common.privacy.verification import verify

KEY = SiteKey(bytes(range(32)))
RELEASE = GaussianRelease(noise_multiplier=10.0)
KILLS_PER_LEDGER = 20
# Every other ledger has a cap that is reached while processes are being killed.
BUDGETS = (Budget(epsilon=2.0, delta=1e-5), Budget(epsilon=50.0, delta=1e-5))
HOURS = 3600


def work(folder: Path, name: str, budget: Budget, rng: random.Random) -> None:
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(word: str, request_id: str) -> None:
        os.write(journal, f"{word} {request_id}\n".encode())

    with Ledger.open(folder / "site.sqlite", cohort="c", key=KEY, timeout_seconds=HOURS) as ledger:
        for i in range(1_000_000):
            request_id = f"{name}-{i}"
            try:
                ledger.reserve(
                    request_id=request_id, events=[RELEASE], purpose="train", budget=budget
                )
            except BudgetExceeded:
                note("full", request_id)
                time.sleep(0.002)
                continue
            if rng.random() < 0.2:
                ledger.abandon(request_id, "no data was read")
                continue
            note("trained", request_id)
            time.sleep(rng.random() * 0.002)
            ledger.commit(request_id)
            note("committed", request_id)


def start(folder: Path, name: str, budget: Budget, seed: int) -> int:
    process = os.fork()
    if process == 0:
        try:
            work(folder, name, budget, random.Random(seed))
        except BaseException as error:
            with (folder / "failures").open("a") as file:
                file.write(f"{error!r}\n")
        finally:
            os._exit(0)
    return process


def torment(folder: Path, budget: Budget, kills: int, rng: random.Random) -> dict[str, int]:
    folder.mkdir()
    running = [start(folder, f"w{i}", budget, rng.randrange(1 << 30)) for i in range(2)]
    for kill in range(kills):
        wait_for_lines(folder / "journal", rng.randrange(1, 16))
        time.sleep(rng.random() * 0.1)
        victim = rng.randrange(2)
        os.kill(running[victim], signal.SIGKILL)
        os.waitpid(running[victim], 0)
        last = kill >= kills - 2
        if not last:
            running[victim] = start(folder, f"k{kill}", budget, rng.randrange(1 << 30))
        elif kill == kills - 2:
            running = [running[1 - victim]] * 2
    return examine(folder, budget, kills)


def wait_for_lines(journal: Path, more: int) -> None:
    """So that the same is going on between two kills on any machine."""

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    first = lines()
    failures = journal.with_name("failures")
    while lines() < first + more:
        assert not failures.exists(), failures.read_text()
        time.sleep(0.001)


def examine(folder: Path, budget: Budget, kills: int) -> dict[str, int]:
    failures = folder / "failures"
    assert not failures.exists(), failures.read_text()
    found = verify(folder / "site.sqlite", public_key=KEY.public_key)
    assert found.ok, found.problems
    lines = (folder / "journal").read_text().splitlines()
    trained = {line.split()[1] for line in lines if line.startswith("trained ")}
    committed = {line.split()[1] for line in lines if line.startswith("committed ")}
    state = {entry.request_id: entry.state for entry in found.entries}
    counted = {name for name, what in state.items() if what is not State.abandoned}
    spent, real = budget.spent(found.spent), budget.spent([RELEASE] * len(trained))
    assert trained <= counted, "something was trained and is not counted"
    assert all(state[name] is State.committed for name in committed), "a commit was lost"
    assert real <= spent <= budget.epsilon, (real, spent)
    assert len(counted - trained) <= kills, "over-counted by more than one reservation a kill"
    still_open = sum(what is State.reserved for what in state.values())
    assert still_open <= kills
    with Ledger.open(folder / "site.sqlite", cohort="c", key=KEY) as ledger:
        assert ledger.epsilon(budget.delta) == spent
        assert len(ledger.entries()) == len(state)
    return {
        "kills": kills,
        "requests": len(state),
        "trained": len(trained),
        "committed": len(committed),
        "open": still_open,
        "over": len(counted - trained),
        "full": int(budget.would_exceed(found.spent, [RELEASE])),
    }


def main(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    total: dict[str, int] = {}
    for i in range(0, kills, KILLS_PER_LEDGER):
        budget = BUDGETS[i // KILLS_PER_LEDGER % 2]
        here = folder / f"ledger{i}"
        found = torment(here, budget, min(KILLS_PER_LEDGER, kills - i), rng)
        total = {name: total.get(name, 0) + value for name, value in found.items()}
    print(json.dumps(total))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""One run of a deployment on this machine, from its founding to its end, with times noted."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import ssl
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.agent import approval, bundle
from common.errors import RunFailed
from simulations.hosting.child import signals
from simulations.hosting.process_tree import adopt_orphans, end_descendants
from simulations.ledgers import reading
from simulations.loopback import timeline
from simulations.loopback.consortium import Agreed, Consortium, Site
from simulations.loopback.processes import Processes
from simulations.loopback.timeline import Ear, Heard, Round, SiteRound, Span

_RUN = "bench"
_SECONDS = 600.0  # without any of what is waited for
_TIMES = 20
_PATH = "/usr/sbin:/usr/bin:/usr/local/sbin:/bin"
_NOTED = "$msec $connection_requests $request_length $bytes_sent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What nginx was asked, from one moment to another.

    Attributes:
        requests: how many.
        handshakes: how many of them were the first of their connection.
        bytes: of requests and replies, inside TLS.
    """

    requests: int
    handshakes: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What a run was like.

    Attributes:
        rounds: in order.
        training: seconds of each round in which at least one hospital trained.
        parts: of each round, on the way of the hospital that answered last (`timeline.PARTS`).
        asked: of nginx, from the end of the first round to that of the last; absent without nginx.
        handshake_seconds: of one TLS connection, median of several.
        check_seconds: of the gate's check of a bundle (hash, signed list, content), median.
        start_seconds: from the first command to the first round's beginning.
    """

    rounds: tuple[Round, ...]
    training: tuple[float, ...]
    parts: tuple[dict[str, float], ...]
    asked: Asked | None
    handshake_seconds: float
    check_seconds: float
    start_seconds: float


def has_nginx() -> bool:
    """Whether nginx is installed where the server's unit looks for it."""
    return shutil.which("nginx", path=_PATH) is not None


def hold(root: Path, agreed: Agreed, *, sites: int, say: Callable[[str], None]) -> Trial:
    """Sets up, runs, measures and ends a consortium of ``sites`` hospitals in the folder ``root``.

    Raises:
        RunFailed: Something of it ended before its time, or the run did.
    """
    began = time.time()
    processes = Processes(logs=root / "logs", seconds=_SECONDS)
    with _ended(processes):
        say("founding a consortium, hospitals join ...")
        town = Consortium.found(root, agreed, processes)
        if has_nginx():
            _note_requests(town)
        else:
            town.units = ("superlink", "superexec")
        town.start()
        for number in range(sites):
            town.join(f"hospital-{number + 1}")
        app = root / "app"
        town.fedward("consortium", "app", town.folder, app)
        for site in town.sites.values():
            site.approve(app / "app.fab")
            _dial(town, site)
            site.start_all()
        town.prepare(_RUN)
        run = town.folder / "runs" / _RUN
        ear = Ear(files={**_logs(town), "events": run / "events.jsonl"})
        processes.watch = ear.listen
        try:
            say("rounds ...")
            town.go(app, _RUN)
            ear.listen()
        finally:
            ear.close()
        return _measured(town, app / "app.fab", ear.lines, began)


@contextmanager
def _ended(processes: Processes) -> Generator[None]:
    """Ends every process at last; a second Ctrl-C must not leave half of them behind."""
    adopt_orphans()
    try:
        yield
    finally:
        with signals({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}):
            processes.stop()
            end_descendants()


def _note_requests(town: Consortium) -> None:
    """Lets nginx write milliseconds and bytes, which its usual log does not have."""
    path = town.folder / "nginx.conf"
    log = town.folder / "nginx" / "access.log"
    text = path.read_text()
    if f"access_log {log};" not in text:
        raise RunFailed(f"{path}: does not say access_log {log}")
    noted = f"log_format noted '{_NOTED}';\n    access_log {log} noted;"
    path.write_text(text.replace(f"access_log {log};", noted))


def _dial(town: Consortium, site: Site) -> None:
    """Without nginx a hospital dials the SuperLink itself."""
    if "nginx" not in town.units:
        script = site.home / "start" / "supernode"
        text = script.read_text()
        script.write_text(text.replace(f"localhost:{town.port}", f"localhost:{town.link_port}"))


def _logs(town: Consortium) -> dict[str, Path]:
    names = [f"{site}-{unit}" for site in town.sites for unit in ("supernode", "gate", "superexec")]
    return {name: town.processes.log(name) for name in names}


def _measured(town: Consortium, bundle_file: Path, lines: list[Heard], began: float) -> Trial:
    rounds = timeline.rounds(heard for heard in lines if heard.source == "events")
    said = {name: _site_rounds(site) for name, site in town.sites.items()}
    answers = [[found[one.number] for found in said.values()] for one in rounds]
    span = Span(begin=rounds[0].span.end, end=rounds[-1].span.end)
    return Trial(
        rounds=tuple(rounds),
        training=tuple(timeline.covered(one.trained for one in site) for site in answers),
        parts=tuple(timeline.parts(lines, one, said[one.last][one.number]) for one in rounds),
        asked=_asked(town, span) if "nginx" in town.units else None,
        handshake_seconds=_handshake(town),
        check_seconds=_check(next(iter(town.sites.values())), bundle_file),
        start_seconds=rounds[0].span.begin - began,
    )


def _site_rounds(site: Site) -> dict[int, SiteRound]:
    ledgers = site.home / "agent" / "state" / "ledgers"
    trained: dict[int, Span] = {}
    for name, path in reading.find(ledgers).items():
        trained |= trained_in(name, path)
    asked = timeline.asked_in(site.log())
    return {
        number: SiteRound(asked=asked[number], trained=span) for number, span in trained.items()
    }


def trained_in(name: str, path: Path) -> dict[int, Span]:
    """By round: from the ledger's reservation, before the first gradient, to its commit.

    Raises:
        RunFailed: A round was not committed.
    """
    found: dict[int, Span] = {}
    for request in reading.read(name, path).requests:
        if request.closed is None:
            raise RunFailed(f"{name}: {request.entry.request_id} was not committed")
        number = int(request.entry.request_id.split("/")[-2])
        begin, end = map(timeline.seconds_of, (request.time, request.closed))
        found[number] = Span(begin=begin, end=end)
    return found


def _asked(town: Consortium, span: Span) -> Asked:
    rows = [
        line.split() for line in (town.folder / "nginx" / "access.log").read_text().splitlines()
    ]
    there = [row for row in rows if span.begin < float(row[0]) <= span.end]
    return Asked(
        requests=len(there),
        handshakes=sum(row[1] == "1" for row in there),
        bytes=sum(int(row[2]) + int(row[3]) for row in there),
    )


def _handshake(town: Consortium) -> float:
    """Seconds of one connection with TLS to where hospitals dial, as a SuperNode makes it."""
    port = town.port if "nginx" in town.units else town.link_port
    trusted = ssl.create_default_context(cafile=str(town.folder / "ca.crt"))

    def connect() -> None:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            trusted.wrap_socket(plain, server_hostname="localhost"),
        ):
            pass

    return _median(connect)


def _check(site: Site, bundle_file: Path) -> float:
    """Seconds of what the gate does with a bundle, done here."""
    content = bundle_file.read_bytes()
    public_key = site.fedward("key")

    def check() -> None:
        hashlib.sha256(content).hexdigest()
        approval.listed(site.home / "agent" / "approvals.json", public_key)
        bundle.parse(content)

    return _median(check)


def _median(action: Callable[[], None]) -> float:
    seconds: list[float] = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)

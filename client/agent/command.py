"""``fedward site``: what the engineer and the data officer of a hospital do."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.provisioning import command as provisioning
from common.errors import LedgerError, UsageError

if TYPE_CHECKING:
    from client.agent.approval import Approvals
    from client.agent.audit import AuditLog
    from client.agent.bundle import Bundle
    from client.agent.site_file import SiteFile
    from client.agent.status import CohortStatus

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A hospital: init, enrol, doctor; its agent, gate, policy, approvals, log, status.",
)
policy_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="What the hospital allows."
)
app.add_typer(policy_app, name="policy")
provisioning.register(app)

ConfigFile = Annotated[Path, typer.Option("--config", help="The agent's file.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of lines.")]
_SITE_FILE = Path("site.yaml")


@policy_app.command("check")
def check_policy(
    file: Annotated[Path, typer.Argument(help="The policy's file.")],
) -> None:
    """Say whether the agent could use this policy: exit code 0, or 2 and one line."""
    from client.agent import policy_file

    reading = policy_file.read(file)
    if reading.policy is None:
        raise UsageError(reading.problem)
    studies = ", ".join(reading.policy.studies) or "none"
    typer.echo(f"{file}: sound; studies: {studies}; sha256 {reading.sha256[:16]}")


@policy_app.command("show")
def show_policy(
    file: Annotated[Path, typer.Argument(help="The policy's file.")],
) -> None:
    """Print what a policy comes to: caps, whose noise may protect, what a round may be."""
    from client.agent import policy, policy_file

    reading = policy_file.read(file)
    if reading.policy is None:
        raise UsageError(reading.problem)
    for line in policy.lines(reading.policy):
        typer.echo(line)


@policy_app.command("template")
def policy_template() -> None:
    """Print a policy to start from, with what each setting means."""
    from client.agent import policy

    typer.echo(policy.template(), nl=False)


@app.command()
def serve(config: ConfigFile = _SITE_FILE) -> None:
    """Answer requests at the socket until SIGTERM or SIGINT."""
    from client.agent import site_file

    file = site_file.read(config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with _one_line(), _only_agent(file):
        from client.agent.start import run

        run(file)


@app.command()
def gate(
    config: Annotated[Path, typer.Option("--config", help="The gate's file.")] = Path("gate.yaml"),
) -> None:
    """Stand between Flower and the agent: only approved bundles pass. Until SIGTERM or SIGINT."""
    from client.agent import gate_door, gate_file

    file = gate_file.read(config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each question otherwise
    gate_door.run(file)


@app.command()
def runner(
    gate: Annotated[str, typer.Option(metavar="127.0.0.1:PORT", help="Where the gate listens.")],
) -> None:
    """Run each approved bundle in a process of its own, for each message. Until SIGTERM or SIGINT.

    Takes the place of flower-superexec.
    """
    from client.agent import gate_file

    address = gate_file.loopback("--gate", gate)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each question otherwise
    from client.agent import runner as runners

    runners.run(address)


@app.command("key")
def show_key(config: ConfigFile = _SITE_FILE) -> None:
    """Print the public half of the site's key, which signs the approvals."""
    with _one_line(), _store(config) as (approvals, _):
        typer.echo(approvals.key.public_key)


@app.command()
def log(
    file: Annotated[Path, typer.Argument(help="The audit log's file.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    last: Annotated[int, typer.Option(min=0, help="So many rows; 0 shows all.")] = 0,
    public_key: Annotated[
        str | None, typer.Option(help="The site's, where its key is not in ledgers/ beside.")
    ] = None,
) -> None:
    """Show the audit log after checking every row: exit code 1 if something is wrong with it."""
    from client.agent import audit
    from common.privacy.book import KEY_NAME
    from common.privacy.keys import SiteKey

    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    ledgers = file.parent / "ledgers"
    with _one_line():
        key = public_key or SiteKey.load(ledgers / KEY_NAME).public_key
        found = audit.read(file, public_key=key, ledgers=ledgers if ledgers.is_dir() else None)
    for record in found.records[-last:] if last else found.records:
        fields = record.to_dict()
        typer.echo(json.dumps(fields) if as_json else _line(fields))
    for problem in found.problems:
        typer.echo(f"Error: {problem}", err=True)
    if found.problems:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"sound: {found.length} rows, head {found.head[:16]}")


@app.command()
def status(
    config: ConfigFile = _SITE_FILE,
    as_json: AsJson = False,
    last: Annotated[int, typer.Option(min=0, help="So many rounds; 0 shows all.")] = 10,
) -> None:
    """Budget used and left of each cohort, and the last rounds: exit code 1 on any problem."""
    from client.agent import site_file
    from client.agent import status as site_status

    file = site_file.read(config)
    with _one_line():
        authority = config.absolute().parent / "ca.crt"
        found = site_status.read(file, last=last, authority=authority)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        for cohort in found.cohorts:
            typer.echo(_cohort_line(cohort))
        for one in found.rounds:
            typer.echo(_line(one.to_dict()))
        if found.authority_ends is not None:
            typer.echo(f"next expiry: the consortium's authority, {found.authority_ends:%Y-%m-%d}")
        for problem in found.problems:
            typer.echo(f"Error: {problem}", err=True)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="A Flower app bundle (.fab).")],
    config: ConfigFile = _SITE_FILE,
    as_json: AsJson = False,
) -> None:
    """Show what a bundle holds, and how it differs from the one approved last. Runs none of it."""
    from client.agent import bundle as bundles

    bundles.read(bundle)  # complaints name the file
    with _one_line(), _store(config) as (approvals, _):
        found = approvals.look_at(bundle.read_bytes())
        before, approved = approvals.last(), approvals.allow(found.sha256)
    lines = [] if before is None else bundles.differences(before, found)
    if as_json:
        typer.echo(json.dumps(_inspected(found, before, approved, lines), indent=2))
        return
    typer.echo(f"{bundles.shown(found.name)}\nsha256 {found.sha256}")
    typer.echo("approved" if approved else "not approved")
    for name, reference in found.components.items():
        typer.echo(bundles.shown(f"runs {name}: {reference}"))
    for fields in _files(found):
        typer.echo(
            bundles.shown(f"{fields['sha256'][:16]}  {fields['bytes']:>8}  {fields['path']}")
        )
    if before is None:
        typer.echo("nothing is approved yet to compare with")
    elif lines:
        typer.echo(f"differences from {before.sha256[:16]}:\n" + "\n".join(lines))
    else:
        typer.echo(f"no differences from {before.sha256[:16]}")


@app.command()
def approve(
    sha256: Annotated[str, typer.Argument(help="As inspect shows it.")],
    config: ConfigFile = _SITE_FILE,
) -> None:
    """Allow a bundle that was inspected to ask; from the next request on."""
    with _one_line(), _store(config) as (approvals, audit):
        found = approvals.approve(sha256, audit)
    typer.echo(f"approved {found.sha256} ({found.name})")


@app.command()
def revoke(
    sha256: Annotated[str, typer.Argument(help="Of an approved bundle.")],
    config: ConfigFile = _SITE_FILE,
) -> None:
    """Take an approval back; from the next request on."""
    with _one_line(), _store(config) as (approvals, audit):
        approvals.revoke(sha256, audit)
    typer.echo(f"revoked {sha256}")


@contextmanager
def _one_line() -> Generator[None]:
    """A ledger, key or log that cannot be used is the user's to mend."""
    try:
        yield
    except LedgerError as error:
        raise UsageError(str(error)) from error


@contextmanager
def _store(config: Path) -> Generator[tuple[Approvals, AuditLog]]:
    from client.agent import site_file
    from client.agent.approval import Approvals
    from client.agent.audit import FILE_NAME, AuditLog
    from common.privacy.book import LedgerBook

    file = site_file.read(config)
    make_state(file)
    key = LedgerBook.at(file.ledgers).key
    audit = AuditLog(file.state / FILE_NAME, key=key)
    try:
        yield Approvals(folder=file.approvals, key=key, published=file.published), audit
    finally:
        audit.close()


def make_state(file: SiteFile) -> None:
    """The state's folder, for this user alone.

    Raises:
        UsageError: It cannot be made, other users may look into it, or it is another user's.
    """
    try:
        file.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = file.state.stat()
    except OSError as error:
        raise UsageError(f"{file.state}: {error.strerror}") from error
    if found.st_mode & 0o077:
        raise UsageError(f"{file.state}: other users may look into it; chmod 700")
    if found.st_uid != os.getuid():  # root's files here would be out of the agent's reach
        raise UsageError(f"{file.state}: belongs to the user {found.st_uid}; run this as that user")


@contextmanager
def _only_agent(file: SiteFile) -> Generator[None]:
    """Holds the state's lock, so that there is one agent for it."""
    import fcntl

    make_state(file)
    lock = os.open(file.state / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{file.state}: another agent works with it") from error
        yield
    finally:
        os.close(lock)


def _files(found: Bundle) -> list[dict[str, Any]]:
    import hashlib

    return [
        {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for path, content in sorted(found.files.items())
    ]


def _inspected(
    found: Bundle, before: Bundle | None, approved: bool, lines: list[str]
) -> dict[str, Any]:
    return {
        "schema": "fedward.bundle/1",
        "name": found.name,
        "sha256": found.sha256,
        "approved": approved,
        "components": found.components,
        "files": _files(found),
        "compared_with": None if before is None else before.sha256,
        "differences": lines,
    }


def _line(fields: dict[str, Any]) -> str:
    shown = {
        name: json.dumps(value) if isinstance(value, dict | list) else value
        for name, value in fields.items()
        if value is not None
    }
    return "  ".join(f"{name}={value}" for name, value in shown.items())


def _cohort_line(cohort: CohortStatus) -> str:
    name = cohort.study or "of no study that the agent has served"
    if cohort.problems:
        return f"cohort {name}: {'; '.join(cohort.problems)}"
    cap, spent = cohort.budget, cohort.epsilon
    if cap is None or spent is None:
        return f"cohort {cohort.cohort[:16]} ({name}): the policy has no cap for it"
    left = max(0.0, cap.epsilon - spent)
    alone = cohort.epsilon_alone
    no_trust = "" if alone is None else f"; {alone:.4g} if no other hospital can be trusted"
    if alone is not None and cap.epsilon_alone < float("inf"):
        no_trust += f", of {cap.epsilon_alone:g}"
    return (
        f"cohort {cohort.cohort[:16]} ({name}): epsilon {spent:.4g} of {cap.epsilon:g} used, "
        f"{left:.4g} left (delta {cap.delta:g}, unit {cap.unit.value}, accountant "
        f"{cap.accountant}, {cohort.num_open} open reservations){no_trust}"
    )

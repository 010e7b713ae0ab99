"""``fedward consortium``: what the people who run the server do."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import UsageError

if TYPE_CHECKING:
    from common.enrolment import Enrolment

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A consortium's server: found, invite, admit, revoke, rotate, prepare, run, doctor.",
)

Where = Annotated[Path, typer.Argument(metavar="FOLDER", help="The consortium's folder.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder, readable by the server's user.")],
    name: Annotated[str, typer.Option(help="Of the consortium; hospitals see it.")],
    host: Annotated[
        list[str], typer.Option(help="NAME[,ADDRESS...] that hospitals dial; the first is theirs.")
    ],
    port: Annotated[int, typer.Option(help="Where nginx answers hospitals.")] = 8443,
    link_port: Annotated[int, typer.Option(help="Of the SuperLink, on loopback.")] = 8000,
    health_port: Annotated[int, typer.Option(help="Of its health service, on loopback.")] = 8001,
    user: Annotated[
        str | None, typer.Option(help="User of the server's processes; default: yours.")
    ] = None,
) -> None:
    """Make keys, certificates, nginx.conf, start scripts, units and a compose file."""
    from common import unix_user
    from common.exchange import in_groups
    from server.consortium import authority, founding
    from server.consortium.folder import Settings

    settings = Settings(
        name=name,
        hosts=_hosts(host),
        port=port,
        link_port=link_port,
        health_port=health_port,
        user=user or unix_user.myself().name,
    )
    made = founding.found(folder, settings, now=datetime.now(UTC))
    digest = authority.sha256(made.ca_certificate.read_bytes())
    typer.echo(f"{made.path}: the consortium {name}, for hospitals at {settings.address}")
    typer.echo(f"authority {in_groups(digest)} (hospitals compare this by telephone)")
    typer.echo(f"keep {made.ca_key} off this machine: only rotate needs it")


@app.command()
def invite(
    folder: Where,
    hospital: Annotated[str, typer.Argument(help="Its name in the consortium.")],
    out: Annotated[Path, typer.Option(help="Where to write the join file.")],
) -> None:
    """Write a join file for a hospital. It holds no secret."""
    from common.files import write_new
    from server.consortium.folder import Folder
    from server.consortium.members import Members

    members = Members(folder=Folder(path=folder))
    join = members.invitation(hospital)
    try:
        write_new(out, join.dumps())
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}") from error
    members.invite(hospital, now=datetime.now(UTC))
    typer.echo(f"{out}: invites {hospital} to {join.consortium} at {join.address}")
    typer.echo(f"authority {join.fingerprint} (the hospital compares this by telephone)")


@app.command()
def admit(
    folder: Where,
    file: Annotated[Path, typer.Argument(help="The hospital's enrolment file.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="As the hospital reads it out; without it you are asked.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="The hospital has a new key.")] = False,
) -> None:
    """Let a hospital connect, after its fingerprint was compared by telephone."""
    from server.consortium.folder import Folder
    from server.consortium.members import Members
    from server.consortium.superlink import Superlink

    place = Folder(path=folder)
    members = Members(folder=place)
    given = members.check(file, replaced=replace)
    _compare(given, fingerprint)
    member = members.admit(given, Superlink(folder=place), now=datetime.now(UTC))
    typer.echo(f"admitted {member.hospital} as node {member.node_id}")


@app.command()
def revoke(folder: Where, hospital: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Let a hospital connect no more."""
    from server.consortium.folder import Folder
    from server.consortium.members import Members
    from server.consortium.superlink import Superlink

    place = Folder(path=folder)
    member = Members(folder=place).revoke(hospital, Superlink(folder=place), now=datetime.now(UTC))
    typer.echo(f"revoked {member.hospital}")


@app.command()
def members(
    folder: Where,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """Show which hospitals were invited, admitted, revoked."""
    from dataclasses import asdict

    from server.consortium.folder import Folder
    from server.consortium.members import Members

    place = Folder(path=folder)
    place.settings()
    found = Members(folder=place).all()
    if as_json:
        typer.echo(json.dumps([{**asdict(one), "state": one.state} for one in found], indent=2))
        return
    for one in found:
        when = one.admitted or one.revoked or one.invited
        node = "" if one.node_id is None else f"  node {one.node_id}"
        typer.echo(f"{one.hospital}  {one.state} {when}{node}")


@app.command()
def roster(
    folder: Where,
    out: Annotated[Path, typer.Option(help="Where to write the roster, for hospitals to pin.")],
    hospital: Annotated[
        list[str] | None, typer.Argument(help="Who takes part; default: all that are admitted.")
    ] = None,
) -> None:
    """Write the hospitals' names and public keys, for rounds of secure aggregation."""
    from common.files import write_new
    from server.consortium.folder import Folder
    from server.consortium.members import Members

    found = Members(folder=Folder(path=folder)).roster(hospital or [])
    try:
        write_new(out, found.dumps())
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}") from error
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"roster {found.fingerprint} (hospitals compare this with each other)")
    typer.echo(f"{out}: for fedward site roster at each of them")


@app.command()
def rotate(
    folder: Where,
    host: Annotated[
        list[str] | None, typer.Option(help="NAME[,ADDRESS...] from now on; default: as before.")
    ] = None,
) -> None:
    """Make a new server key and certificate. Hospitals need not do anything."""
    from server.consortium import founding
    from server.consortium.folder import Folder

    place = Folder(path=folder)
    kept = founding.rotate(place, hosts=_hosts(host or []), now=datetime.now(UTC))
    typer.echo(f"{place.server_certificate}: new; the one before is {kept}")
    typer.echo("now: systemctl restart fedward-superlink && systemctl reload fedward-nginx")


@app.command("app")
def make_app(
    folder: Where, out: Annotated[Path, typer.Argument(help="A new folder for Flower's app.")]
) -> None:
    """Write Flower's app and the bundle that hospitals approve. It holds no code."""
    import hashlib

    from server.consortium import app_folder
    from server.consortium.folder import Folder

    bundle = app_folder.write(Folder(path=folder), out)
    typer.echo(f"{bundle}: for hospitals to inspect and approve")
    typer.echo(f"sha256 {hashlib.sha256(bundle.read_bytes()).hexdigest()}")


@app.command()
def prepare(
    folder: Where,
    name: Annotated[str, typer.Argument(help="Of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings, as hospitals have them in site.yaml.")
    ] = None,
    outputs: Annotated[int, typer.Option(min=2, help="Classes or findings of the study.")] = 2,
    volumes: Annotated[bool, typer.Option("--volumes", help="Images are volumes.")] = False,
) -> None:
    """Make a run's folder: its configuration and the weights that it begins with."""
    import configs
    from common import unix_user
    from common.exchange import in_groups
    from server import prepared
    from server.consortium.folder import Folder
    from server.consortium.members import Members

    place = Folder(path=folder)
    settings = place.settings()
    config = configs.load(overrides or [])
    members = Members(folder=place)
    members.expect(config.federation.sites)
    keys = {one.hospital: one.site_key for one in members.all() if one.site_key}
    shape = prepared.Shape(num_outputs=outputs, volumes=volumes)
    run = prepared.prepare(place.runs, name, config, shape, keys)
    unix_user.find(settings.user).own_all(run.path)
    typer.echo(f"{run.path}: prepared for {', '.join(config.federation.sites)}")
    identities = run.identities()
    if identities is not None:
        typer.echo(f"roster {in_groups(identities.digest)} (what each of them has to have pinned)")


@app.command("run")
def start_run(
    folder: Where,
    flower_app: Annotated[Path, typer.Argument(metavar="APP", help="As fedward consortium app.")],
    name: Annotated[str, typer.Argument(help="Of a prepared run; one that failed goes on.")],
) -> None:
    """Start a prepared run. What happens stands in its folder."""
    from server import prepared
    from server.consortium.folder import Folder
    from server.consortium.superlink import Superlink

    place = Folder(path=folder)
    run = prepared.find(place.runs, name)
    number = Superlink(folder=place).run(flower_app.absolute(), name)
    typer.echo(f"{run.events}: started as run {number}")


@app.command()
def doctor(
    folder: Where,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """Look for what is wrong, each with its remedy: exit code 1 if something fails."""
    from common.checkup import failed, lines, to_dict
    from server.consortium import doctor as doctors
    from server.consortium.folder import Folder

    found = doctors.examine(Folder(path=folder), os.environ, now=datetime.now(UTC))
    if as_json:
        typer.echo(json.dumps(to_dict(found), indent=2))
    else:
        for line in lines(found):
            typer.echo(line)
    if failed(found):
        raise typer.Exit(1)


def _hosts(given: list[str]) -> tuple[str, ...]:
    from server.consortium import authority

    found = [authority.check_host(one) for part in given for one in part.split(",")]
    return tuple(dict.fromkeys(found))


def _compare(given: Enrolment, fingerprint: str | None) -> None:
    """Stops unless somebody says that the fingerprint is the hospital's.

    Raises:
        UsageError: It is not, or nobody can be asked.
    """
    typer.echo(f"{given.hospital}: keys {given.fingerprint}")
    if fingerprint is not None:
        if fingerprint.strip().lower() != given.fingerprint:
            raise UsageError(f"fingerprint={fingerprint}: not that of the file; do not admit it")
        return
    if not os.isatty(0):
        raise UsageError("fingerprint: give it, as the hospital reads it out (--fingerprint)")
    if not typer.confirm("Does the hospital read out the same?"):
        raise UsageError("not admitted")

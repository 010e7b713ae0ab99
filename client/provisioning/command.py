"""``fedward site init``, ``enrol``, ``roster``, ``rotate-key``, ``doctor``: into a consortium."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from common.errors import UsageError

_HOME = Path()

HomeFolder = Annotated[Path, typer.Option("--home", help="The hospital's folder.")]


def register(app: typer.Typer) -> None:
    """Adds these commands to ``fedward site``."""
    app.command()(init)
    app.command()(enrol)
    app.command()(roster)
    app.command("rotate-key")(rotate_key)
    app.command()(doctor)


def init(
    join: Annotated[Path, typer.Option(help="The consortium's join file.")],
    home: Annotated[Path, typer.Option(help="A new folder for the hospital's files.")],
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the study and model agreed on; repeat it."),
    ] = None,
    users: Annotated[
        str, typer.Option(help="AGENT,GATE,BUNDLE: three users; or one, to try things out.")
    ] = "fedward-agent,fedward-gate,fedward-bundle",
    node_port: Annotated[int, typer.Option(help="Of the SuperNode, on loopback.")] = 9094,
    gate_port: Annotated[int, typer.Option(help="Of the gate, on loopback.")] = 9095,
) -> None:
    """Make the hospital's keys, policy, settings, units and compose file."""
    from client.provisioning import setup
    from client.provisioning.home import Settings, Users
    from common import join_file

    names = users.split(",")
    if len(names) not in {1, 3} or not all(names):
        raise UsageError(f"users={users}: must be AGENT,GATE,BUNDLE or one user")
    agent, gate, bundle = names if len(names) == 3 else names * 3
    made = setup.set_up(
        home,
        given := join_file.read(join),
        Settings(
            users=Users(agent=agent, gate=gate, bundle=bundle),
            node_port=node_port,
            gate_port=gate_port,
        ),
        overrides=setting or ["data.root=/srv/fedward/images"],
    )
    typer.echo(f"{made.path}: {given.hospital} in {given.consortium} at {given.address}")
    typer.echo(f"authority {given.fingerprint} (compare this with the consortium by telephone)")
    typer.echo(f"now edit {made.policy} and {made.site_file}, then: fedward site enrol")


def enrol(
    home: HomeFolder = _HOME,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the file; default: enrolment.json in HOME.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over the file of the key before.")
    ] = False,
) -> None:
    """Write the public halves of the hospital's keys for the consortium, and their fingerprint."""
    from client.provisioning import setup
    from client.provisioning.home import Home
    from common.files import write_atomically, write_new

    place = Home(path=home)
    place.settings()
    found = setup.enrol(place)
    path = out or place.path / "enrolment.json"
    try:
        (write_atomically if replace else write_new)(path, found.dumps())
    except FileExistsError as error:
        if path.is_file() and path.read_text() == found.dumps():
            typer.echo(f"{path}: is there already, with the same keys")
        else:
            raise UsageError(f"{path}: is there already (--replace, after rotate-key)") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    typer.echo(f"{path}: send this to {found.consortium}; it holds no secret")
    typer.echo(f"keys {found.fingerprint} (read this out when the consortium calls)")


def roster(
    home: HomeFolder = _HOME,
    pin: Annotated[
        Path | None, typer.Option(help="The consortium's roster, to be pinned here.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="As the other hospitals read it out; else you are asked.")
    ] = None,
) -> None:
    """Show the hospitals that secure sums are made with, or pin them. No server can change it."""
    from client.agent import site_file
    from client.provisioning import setup
    from client.provisioning.home import Home
    from common.secure_aggregation import roster_file

    place = Home(path=home)
    place.settings()
    if pin is None and not place.roster.exists():
        raise UsageError(f"{place.roster}: nothing is pinned yet (--pin FILE)")
    found = roster_file.read(pin or place.roster)
    typer.echo(f"consortium {found.consortium}, {len(found.roster.names)} hospitals:")
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"roster {found.fingerprint}")
    if pin is None:
        return
    _compare(found.fingerprint, fingerprint)
    setup.pin(place, found)
    typer.echo(f"{place.roster}: pinned")
    if site_file.read(place.site_file).roster != place.roster.absolute():
        typer.echo(f"now add to {place.site_file}: roster: pinned/roster.json")


def _compare(own: str, read_out: str | None) -> None:
    """Stops unless somebody says that the other hospitals have the same roster.

    Raises:
        UsageError: They have not, or nobody can be asked.
    """
    if read_out is not None:
        if read_out.strip().lower() != own:
            raise UsageError(f"fingerprint={read_out}: not that of the file; do not pin it")
        return
    if not os.isatty(0):
        raise UsageError("fingerprint: give it, as the other hospitals read it out (--fingerprint)")
    if not typer.confirm("Do the other hospitals, asked directly, read out the same?"):
        raise UsageError("not pinned")


def rotate_key(home: HomeFolder = _HOME) -> None:
    """Make a new key of the SuperNode; the consortium has to admit it."""
    from client.provisioning import setup
    from client.provisioning.home import Home

    place = Home(path=home)
    kept = setup.rotate_key(place, now=datetime.now(UTC))
    typer.echo(f"{place.node_key}: new; the one before is {kept}")
    typer.echo("now: fedward site enrol --replace, and send the file to the consortium")
    typer.echo("once it is admitted: systemctl restart fedward-supernode")


def doctor(
    home: HomeFolder = _HOME,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
    data: Annotated[
        bool, typer.Option("--data/--no-data", help="Whether the study is opened and checked.")
    ] = True,
) -> None:
    """Look for what is wrong, each with its remedy: exit code 1 if something fails."""
    from client.provisioning import doctor as doctors
    from client.provisioning.home import Home
    from common.checkup import failed, lines, to_dict

    found = doctors.examine(Home(path=home), os.environ, now=datetime.now(UTC), data=data)
    if as_json:
        typer.echo(json.dumps(to_dict(found), indent=2))
    else:
        for line in lines(found):
            typer.echo(line)
    if failed(found):
        raise typer.Exit(1)

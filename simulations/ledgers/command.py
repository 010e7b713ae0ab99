"""``fedward ledger``: what a hospital's ledgers say. Nothing here changes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show, verify, forecast or export privacy ledgers; none of these changes a ledger.",
)

Ledgers = Annotated[Path, typer.Argument(help="A ledger's file, or a folder of ledgers.")]
PublicKey = Annotated[
    str | None,
    typer.Option(help="The site's public key (hexadecimal), where its key file is not beside."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Delta = Annotated[float | None, typer.Option(help="Instead of the ledger's own delta.")]
ByAccountant = Annotated[str | None, typer.Option("--accountant", help="pld or rdp.")]


@app.command()
def show(
    path: Ledgers,
    as_json: AsJson = False,
    last: Annotated[int, typer.Option(min=0, help="So many requests; 0 shows all.")] = 50,
    delta: Delta = None,
    accountant: ByAccountant = None,
    public_key: PublicKey = None,
) -> None:
    """Every request with its epsilon, and what all of them come to."""
    from simulations.ledgers import view

    readings = _readings(path, public_key=public_key, delta=delta, accountant=accountant)
    if as_json:
        _print_json([view.shown(one, last) for one in readings])
        return
    for one in readings:
        view.show(_console(), one, last)


@app.command()
def verify(path: Ledgers, public_key: PublicKey = None) -> None:
    """Check every row, hash and signature: exit code 1 and a line for each problem, or 0."""
    from simulations.ledgers import reading

    sound = True
    for name, file in reading.find(path).items():
        found = reading.check(file, public_key)
        sound = sound and found.ok
        for problem in found.problems:
            typer.echo(f"{name}: {problem}")
        if found.ok:
            rows = f"{found.length} rows, {len(found.entries)} requests"
            typer.echo(f"{name}: sound, {rows}, head {found.head[:16]}")
    if not sound:
        raise typer.Exit(1)


@app.command()
def forecast(
    path: Ledgers,
    sampling_rate: Annotated[float | None, typer.Option(help="Of each step.")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="Of each step.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="In each round.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="How far to look.")] = 20,
    budget: Annotated[float | None, typer.Option(help="Instead of the ledger's last cap.")] = None,
    as_json: AsJson = False,
    public_key: PublicKey = None,
) -> None:
    """Epsilon against future rounds of a recipe: by default, the last one in the ledger."""
    from simulations.ledgers import view

    if budget is not None and not 0 < budget < float("inf"):
        raise UsageError(f"--budget={budget}: must be a finite number above 0")
    recipe = view.Recipe(
        sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps
    )
    ahead = [
        view.forecast(one, recipe.events(one), rounds=rounds, cap=budget)
        for one in _readings(path, public_key=public_key)
    ]
    if as_json:
        _print_json([one.to_dict() for one in ahead])
        return
    for one in ahead:
        view.show_forecast(_console(), one)


@app.command()
def export(
    path: Ledgers,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file (.json or .csv), not the screen.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV instead of JSON.")] = False,
    public_key: PublicKey = None,
) -> None:
    """All requests without any patient's hash, as JSON or CSV."""
    from common.files import write_atomically
    from simulations.ledgers import view

    suffix = ".csv" if as_csv else ".json"
    if output is not None and output.suffix != suffix:
        # Whatever was typed, no ledger, head or key is overwritten.
        raise UsageError(f"--output={output}: must end in {suffix}")
    readings = _readings(path, public_key=public_key)
    if as_csv:
        text = view.exported_csv(readings)
    else:
        text = _json([view.exported(one) for one in readings])
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        write_atomically(output, text)
    except OSError as error:
        raise UsageError(f"--output={output}: {error.strerror}") from error


def _readings(
    path: Path,
    *,
    public_key: str | None,
    delta: float | None = None,
    accountant: str | None = None,
) -> list[Any]:
    from simulations.ledgers import reading

    return [
        reading.read(name, file, public_key=public_key, delta=delta, accountant=accountant)
        for name, file in reading.find(path).items()
    ]


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _json(ledgers: list[dict[str, Any]]) -> str:
    from simulations.ledgers.view import SCHEMA

    return json.dumps({"schema": SCHEMA, "ledgers": ledgers}, indent=2, allow_nan=False) + "\n"


def _print_json(ledgers: list[dict[str, Any]]) -> None:
    typer.echo(_json(ledgers), nl=False)

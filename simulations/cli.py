"""The command ``fedward``. Starts without torch, Flower or Ray: each command imports its own."""

from __future__ import annotations

import os
import sys

import typer

from client.agent import command as site_command
from common.errors import UsageError
from server.consortium import command as consortium_command
from simulations import calibrate_command, sample_command
from simulations.audit import command as audit_command
from simulations.bench import command as bench_command
from simulations.checks import data_command
from simulations.comparison import command as compare_command
from simulations.hosting import ray_command
from simulations.ledgers import command as ledger_command
from simulations.progress import complain
from simulations.report import command as report_command

EXIT_USAGE = 2

app = typer.Typer(
    name="fedward",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Federated learning among hospitals on medical images, with patient-level privacy.",
)


app.add_typer(ledger_command.app, name="ledger")
app.add_typer(bench_command.app, name="bench")
app.add_typer(audit_command.app, name="audit")
app.add_typer(ray_command.app, name="ray")
app.command()(calibrate_command.calibrate)
app.command("check-data")(data_command.check_data)
app.command()(sample_command.sample)
app.add_typer(site_command.app, name="site")
app.add_typer(consortium_command.app, name="consortium")


@app.callback()
def fedward() -> None:
    """Keep commands as words, even while there are few."""


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="Train one model across simulated hospitals (settings as Hydra overrides).",
)
def simulate(context: typer.Context) -> None:
    """Hand the rest of the command line to Hydra, help included."""
    import configs
    from simulations.simulate import simulate as run

    raise typer.Exit(configs.run(run, context.args, program="fedward simulate"))


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="Train a generator of synthetic images across hospitals, and draw from it.",
)
def synthesize(context: typer.Context) -> None:
    """Hand the rest of the command line to Hydra, help included."""
    import configs
    from simulations.simulate import synthesize as run

    code = configs.run(run, context.args, program="fedward synthesize", primary="synthesize")
    raise typer.Exit(code)


app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    help=compare_command.HELP,
    short_help="Train centralized, federated and alone, at equal privacy, and compare.",
    epilog=(
        "Exit codes: 0 compared; 1 a trial has no result; 2 bad input, or runs that cannot be "
        "compared; 130 interrupted."
    ),
)(compare_command.compare)


app.command(
    help=report_command.HELP,
    short_help="Write the page of a run anew, or compare finished runs.",
)(report_command.report)


def main() -> None:
    """Entry point: bad input is one line and exit code 2."""
    try:
        app()
    except UsageError as error:
        complain(str(error))
        sys.exit(EXIT_USAGE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)

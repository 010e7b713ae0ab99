"""``fedward bench gpu``: what hospitals get out of a GPU that they share."""

from __future__ import annotations

import json
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from common.config import DeviceName, Precision
from common.errors import UsageError
from common.files import check_out, write_atomically
from simulations.bench.contestant import contestant
from simulations.progress_bar import ProgressBar

_WIDTHS = (10, 10, 14, 12, 14, 14)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """What so many hospitals side by side did.

    Attributes:
        clients: their number.
        private: whether with DP.
        samples_per_second: images in steps of all of them together, median over rounds.
        first_bytes: memory in use after the first round.
        last_bytes: the same after the last round.
    """

    clients: int
    private: bool
    samples_per_second: float
    first_bytes: int
    last_bytes: int


def gpu(
    clients: Annotated[
        list[int], typer.Option(min=1, help="Hospitals that train at the same time; several.")
    ] = [1, 4],  # noqa: B006 - typer reads it
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each.")] = 50,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a round.")] = 10,
    batch: Annotated[int, typer.Option(min=2, help="Patients in a step.")] = 64,
    architecture: Annotated[str, typer.Option(help="timm's name.")] = "vit_tiny_patch16_224",
    image_size: Annotated[int, typer.Option(min=16, help="In pixels.")] = 224,
    precision: Annotated[Precision, typer.Option(help="Of the passes.")] = Precision.fp32,
    device: Annotated[DeviceName, typer.Option(help="What they share.")] = DeviceName.cuda,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """Images a second and memory of hospitals that train side by side on one GPU.

    Each has a process of its own and trains all layers with DP on made-up images; one alone without
    privacy is the limit. Memory is what the whole GPU has in use after a round.
    """
    check_out("--json", json_file)
    common = {
        "architecture": architecture,
        "image_size": image_size,
        "batch": batch,
        "steps": steps,
        "precision": precision.value,
        "device": device.value,
    }
    numbers = list(dict.fromkeys([1, *clients]))
    plans = [(1, False), *((number, True) for number in numbers)]
    found: list[Shared] = []
    typer.echo(_line("hospitals", "privacy", "images/s", "over one", "first round", "last round"))
    with ProgressBar() as tell:
        for number, private in plans:
            found.append(measure(number, rounds, {**common, "private": private}, tell))
            typer.echo(_shown(found[-1], found))
    if json_file is not None:
        figures = {"rounds": rounds, **common, "shared": [asdict(one) for one in found]}
        try:
            write_atomically(json_file, json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"--json={json_file}: {error.strerror}") from error


def measure(clients: int, rounds: int, entry: dict[str, Any], tell: ProgressBar) -> Shared:
    """Let so many processes train ``rounds`` rounds, all of them at the same time.

    Raises:
        UsageError: if they cannot.
    """
    per_round = clients * entry["batch"] * entry["steps"]
    stage = f"{clients} hospitals{'' if entry['private'] else ' without privacy'}"
    rates: list[float] = []
    used: list[int] = []
    with ExitStack() as stack:
        those = [
            stack.enter_context(contestant("simulations.bench.gpu_client", entry))
            for _ in range(clients)
        ]
        for one in those:
            _checked(one.answer())
        for number in range(1, rounds + 1):
            began = time.perf_counter()
            for one in those:
                one.send("round")
            answers = [_checked(one.answer()) for one in those]
            rates.append(per_round / (time.perf_counter() - began))
            used.append(max(answer["used_bytes"] for answer in answers))
            tell(stage, number, rounds)
    return Shared(
        clients=clients,
        private=entry["private"],
        samples_per_second=statistics.median(rates),
        first_bytes=used[0],
        last_bytes=used[-1],
    )


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise UsageError(answer["error"])
    return answer


def _shown(one: Shared, so_far: list[Shared]) -> str:
    alone = next((other for other in so_far if other.private), None)
    over = "" if alone is None else f"{one.samples_per_second / alone.samples_per_second:.2f}x"
    return _line(
        one.clients,
        "DP" if one.private else "none",
        f"{one.samples_per_second:.0f}",
        over if one.private else "",
        f"{one.first_bytes / 1e9:.2f} GB",
        f"{one.last_bytes / 1e9:.2f} GB",
    )


def _line(*cells: object) -> str:
    return "".join(f"{cell!s:<{w}}" for cell, w in zip(cells, _WIDTHS, strict=True)).rstrip()

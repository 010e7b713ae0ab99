"""``fedward bench dp``: what a private training step costs beside an ordinary one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from common.config import EngineName, FinetuneMode, Precision
from common.errors import UsageError
from common.files import check_out, write_atomically
from simulations.bench.contestant import contestant

_WARM_UP = 1


class Device(Enum):
    """Where steps run."""

    cpu = "cpu"
    cuda = "cuda"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    architecture: str
    image_size: int
    patch_size: int | None = None


MODELS = {
    "vit_tiny": _Model(architecture="vit_tiny_patch16_224", image_size=64, patch_size=8),
    "swin_tiny": _Model(architecture="swin_tiny_patch4_window7_224", image_size=224),
    "vit_small": _Model(architecture="vit_small_patch16_224", image_size=224),
}
ENGINES = {
    "none": ("none", "flat"),
    "bookkeeping": (EngineName.bookkeeping.value, "flat"),
    "bookkeeping_per_layer": (EngineName.bookkeeping.value, "per_layer"),
    "opacus_hooks": (EngineName.opacus_hooks.value, "flat"),
    "opacus_functorch": (EngineName.opacus_functorch.value, "flat"),
    "opacus_ghost": (EngineName.opacus_ghost.value, "flat"),
}


def dp(
    model: Annotated[
        list[str],
        typer.Option(help=f"One of {', '.join(MODELS)}, or ARCHITECTURE:PIXELS of timm; several."),
    ] = ["vit_tiny", "swin_tiny"],  # noqa: B006 - typer reads it
    batch: Annotated[list[int], typer.Option(min=1, help="Images in a step; several.")] = [16],  # noqa: B006
    engine: Annotated[
        list[str], typer.Option(help=f"Besides none: {', '.join(list(ENGINES)[1:])}; several.")
    ] = list(ENGINES)[1:],
    repeats: Annotated[int, typer.Option(min=3, help="Times each engine takes its turn.")] = 9,
    finetune: Annotated[FinetuneMode, typer.Option(help="Which weights are trained.")] = (
        FinetuneMode.all
    ),
    precision: Annotated[Precision, typer.Option(help="Of the passes.")] = Precision.fp32,
    device: Annotated[Device, typer.Option(help="Where the steps run.")] = Device.cpu,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """Time and memory of a private step, by engine, over those of the step without privacy.

    Each engine has a process of its own, with one thread; they take turns, so that whatever else
    the machine does meets all of them. Time is processor time on a CPU.
    """
    unknown = sorted(set(engine) - set(ENGINES))
    if unknown:
        raise UsageError(f"--engine={unknown[0]}: must be one of {', '.join(list(ENGINES)[1:])}")
    check_out("--json", json_file)
    names = ["none", *(name for name in engine if name != "none")]
    common = {"finetune": finetune.value, "precision": precision.value, "device": device.value}
    rows: list[dict[str, Any]] = []
    typer.echo(_line("model", "batch", "engine", "time", "(spread)", "memory", "s/step"))
    for model_name in model:
        for size in batch:
            entries = {name: _entry(model_name, size, name) | common for name in names}
            with _progress(f"{model_name}, {size} images") as advance:
                found = compare(entries, repeats, advance)
            for name in names:
                row = {"model": model_name, "batch": size, "engine": name, "device": device.value}
                rows.append(row | found[name])
                typer.echo(_shown(rows[-1]))
    if json_file is not None:
        figures = {"rows": rows, "repeats": repeats, **common, "machine": _machine(device)}
        try:
            write_atomically(json_file, json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"--json={json_file}: {error.strerror}") from error


@contextmanager
def _progress(what: str) -> Iterator[Callable[[float], None]]:
    """A bar with the time left on a terminal; yields what sets the share that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda done: bar.update(task, completed=done)


def compare(
    entries: dict[str, dict[str, Any]], repeats: int, advance: Callable[[float], None]
) -> dict[str, dict[str, Any]]:
    """Figures by engine; ratios are medians over turns, against the step of the same turn."""
    with ExitStack() as stack:
        those = {
            name: stack.enter_context(contestant("client.dp.contest", entry))
            for name, entry in entries.items()
        }
        first = {name: one.answer() for name, one in those.items()}
        if "error" in first["none"]:
            raise UsageError(f"--model: {first['none']['error']}")
        running = [name for name in entries if "error" not in first[name]]
        seconds: dict[str, list[float]] = {name: [] for name in running}
        for turn in range(_WARM_UP + repeats):
            for name in running:
                taken = those[name].ask("step")["seconds"]
                if turn >= _WARM_UP:
                    seconds[name].append(taken)
            advance((turn + 1) / (_WARM_UP + repeats))
        peaks = {name: those[name].ask("peak")["peak_bytes"] for name in running}
    figures: dict[str, dict[str, Any]] = {}
    for name in entries:
        if name not in running:
            figures[name] = {"time_ratio": None, "memory_ratio": None, **first[name]}
            continue
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds["none"], strict=True))
        idle = first["none"]["idle_bytes"]
        figures[name] = {
            "time_ratio": statistics.median(ratios),
            "time_ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
            "time_ratio_of_fastest": min(seconds[name]) / min(seconds["none"]),
            "memory_ratio": peaks[name] / peaks["none"],
            "memory_ratio_above_idle": (peaks[name] - idle) / (peaks["none"] - idle),
            "peak_bytes": peaks[name],
            "seconds": statistics.median(seconds[name]),
        }
    return figures


def _entry(name: str, batch: int, engine: str) -> dict[str, Any]:
    model = MODELS.get(name)
    if model is None:
        architecture, _, size = name.partition(":")
        if not size.isdecimal():
            raise UsageError(
                f"--model={name}: must be one of {', '.join(MODELS)}, or ARCHITECTURE:PIXELS"
            )
        model = _Model(architecture=architecture, image_size=int(size))
    kind, clipping = ENGINES[engine]
    return {
        "architecture": model.architecture,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "batch": batch,
        "engine": kind,
        "clipping": clipping,
    }


def _machine(device: Device) -> str:
    if device is Device.cuda:
        import torch

        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _shown(row: dict[str, Any]) -> str:
    if row["time_ratio"] is None:
        return _line(row["model"], row["batch"], row["engine"], "fails:", row["error"], "", "")
    low, high = row["time_ratio_quartiles"]
    return _line(
        row["model"],
        row["batch"],
        row["engine"],
        f"{row['time_ratio']:.2f}x",
        f"({low:.2f}-{high:.2f})",
        f"{row['memory_ratio']:.2f}x",
        f"{row['seconds']:.3f}",
    )


def _line(*cells: object) -> str:
    widths = (12, 6, 24, 8, 14, 8, 8)
    return "".join(f"{cell!s:<{w}}" for cell, w in zip(cells, widths, strict=True)).rstrip()

"""``fedward bench data``: how fast images are decoded, cached and made into batches."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import UsageError

if TYPE_CHECKING:
    from client.data.speed import Speed

_BATCH = 32
_IMAGE_SIZE = 64
_EPOCHS = 5


def data(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="A folder on the disk to measure; nothing is left in it.")
    ] = Path(),
    num_phantoms: Annotated[
        int, typer.Option(min=16, help="DICOM phantoms to write, each with 1 to 4 images.")
    ] = 200,
    size: Annotated[int, typer.Option(min=16, max=512, help="Their side in pixels.")] = 256,
    times: Annotated[int, typer.Option(min=1, help="Training steps that are timed.")] = 10,
) -> None:
    """Images a second: decoded, from the cache; and the loader's share of a training step."""
    from common.files import check_out, write_atomically

    check_out("--json", json_file)
    try:
        with tempfile.TemporaryDirectory(prefix=".fedward-bench-", dir=folder) as work:
            speeds = measure(Path(work), num_phantoms=num_phantoms, size=size)
        loader, step = loader_and_step(times)
        figures = _figures(speeds, loader, step) | {"size": size}
        if json_file is not None:
            write_atomically(json_file, json.dumps(figures, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: {error.strerror}") from error
    count = speeds[0].num_images
    typer.echo(f"{count} DICOM images of {size} x {size}, cached as {_IMAGE_SIZE} x {_IMAGE_SIZE}")
    for speed in speeds:
        typer.echo(f"{speed.name:<40}{speed.images_per_second:>12,.0f} images/s")
    typer.echo(f"a cached epoch is {figures['cached_over_first']:,.0f} times as fast as the first")
    typer.echo(
        f"batch of {_BATCH} with augmentation {1000 * loader:.2f} ms, step of ViT-Tiny "
        f"{1000 * step:.0f} ms of processor time: the loader takes "
        f"{100 * figures['loader_share']:.2f} %"
    )


def measure(work: Path, *, num_phantoms: int, size: int) -> list[Speed]:
    """The speeds, on phantoms that are written below ``work`` first."""
    from client.data.cache import ImageCache
    from client.data.speed import bare_decoding, cached_epochs, decoding, first_epoch, reopened
    from client.data.study import build
    from common.config import DataConfig, PhantomConfig

    phantoms = PhantomConfig(
        num_train_per_site=num_phantoms, num_val=2, num_test=2, size=size, seed=1
    )
    study = build(DataConfig(phantom=phantoms), num_sites=1, phantom_dir=work, secret=bytes(32))
    paths = [record.path for record in study.records]
    cache = ImageCache(folder=work / "cache", image_size=_IMAGE_SIZE)
    study.read(study.records[0])  # starts what decoding needs, so that it is not timed
    bare_decoding(paths)  # brings the files into memory
    return [
        bare_decoding(paths),
        decoding(study),
        first_epoch(study, cache, _BATCH),
        reopened(study, cache),
        cached_epochs(study, cache, _BATCH, _EPOCHS),
    ]


def loader_and_step(times: int) -> tuple[float, float]:
    """Processor seconds of a batch with augmentation, and of a plain step of ViT-Tiny at 64 px.

    The step has no per-patient gradients: a private one takes longer, so that the loader's share
    of it is smaller still.
    """
    import numpy as np
    import torch
    from torch.nn import functional

    from client.data.augmentation import Augmentation
    from client.data.speed import batches
    from common.config import AugmentationConfig, Config
    from simulations.sites import shared_model

    everything = AugmentationConfig(
        flip_horizontal=True,
        flip_vertical=True,
        rotation_degrees=15.0,
        shift=0.05,
        scale=0.1,
        brightness=0.1,
        contrast=0.1,
    )
    augmentation, generator = Augmentation(config=everything), torch.Generator().manual_seed(0)
    shape = (_BATCH * times, 1, _IMAGE_SIZE, _IMAGE_SIZE)
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    model = shared_model(Config(), 2).build()
    optimizer = torch.optim.Adam(model.parameters())
    labels = torch.arange(_BATCH) % 2

    def load(number: int) -> torch.Tensor:
        batch = next(batches(images, _BATCH, number))
        return augmentation.views(torch.from_numpy(batch) * 0.5 + 0.5, 1, generator) * 2 - 1

    def step(_: int) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(ready), labels).backward()
        optimizer.step()

    # Threads that wait for each other spend processor time, too; one thread does not wait.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ready = load(0)
        step(0)
        return _median(load, times), _median(step, times)
    finally:
        torch.set_num_threads(threads)


def _median(action: Callable[[int], object], times: int) -> float:
    samples: list[float] = []
    for number in range(times):
        work = time.process_time()
        action(number)
        samples.append(time.process_time() - work)
    return sorted(samples)[len(samples) // 2]


def _figures(speeds: list[Speed], loader: float, step: float) -> dict[str, Any]:
    bare, decoded, first, _, cached = (speed.images_per_second for speed in speeds)
    return {
        "speeds": [
            asdict(speed) | {"images_per_second": speed.images_per_second} for speed in speeds
        ],
        "decoding_over_bare": decoded / bare,
        "cached_over_first": cached / first,
        "loader_seconds": loader,
        "step_seconds": step,
        "loader_share": loader / step,
    }

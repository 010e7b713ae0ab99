"""``fedward sample``: more images from a generator that was trained before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.progress_bar import ProgressBar

if TYPE_CHECKING:
    from client.synthesis.generator_file import GeneratorFile

_AT_ONCE = 256


def sample(
    generator: Annotated[Path, typer.Argument(help="A generator file of fedward synthesize.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the images; must not exist.")],
    num_images: Annotated[int, typer.Option(min=1, help="How many, all classes alike.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other images.")] = 0,
) -> None:
    """Draw images from a generator; they carry its provenance, and cost no one anything more."""
    from client.synthesis.generator_file import read_generator
    from client.synthesis.image_set import write_image_set

    source = read_generator(generator)
    with ProgressBar() as progress:
        write_image_set(
            folder,
            _drawn(source, num_images, seed, progress),
            words=source.words,
            provenance=source.provenance,
        )
    typer.echo(f"{num_images} images: {folder}")


def _drawn(
    source: GeneratorFile, num_images: int, seed: int, progress: ProgressBar
) -> Iterator[tuple[Any, Any]]:
    import torch

    from common.generators.sampling import sample as draw

    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % len(source.words)
    done = 0
    for part in labels.split(_AT_ONCE):
        yield draw(source.generator, part, random).numpy(), part.numpy()
        done += len(part)
        progress("drawing", done, num_images)

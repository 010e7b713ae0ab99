"""``fedward audit inversion``: an image from one update, without privacy and with it."""

from __future__ import annotations

import json
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import DataError, UsageError
from common.files import check_out, write_atomically
from simulations.audit.end import EXIT_INTERRUPTED, orderly_end

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from client.audit.inversion import Victim
    from common.config import Config
    from common.messages import Recipe
    from simulations.audit.inversion_page import InversionPage, Picture
    from simulations.audit.run import FinishedRun

    Image = NDArray[np.float32]

_PLANNED_PATIENTS = 100  # the noise of a small hospital's run
_SUFFIXES = {".png", ".jpg", ".jpeg"}


def inversion(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the page with pictures to this HTML file.",
            show_default="inversion.html, here or in --run",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="A finished run: its own settings, unless some are given; in its report as well."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of PNG or JPEG images, in the place of the study's."),
    ] = None,
    public: Annotated[
        str | None,
        typer.Option(help="Why the images may be shown to anyone, if data.public does not say it."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=50, help="How many images.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """Compute an image from one hospital's update of one step, and fail to once it is private.

    Settings are those of fedward simulate: privacy.epsilon=8 model=vit_tiny data.image_size=64.
    Without a study, phantoms are shown.
    """
    finished = None if run is None else _finished(run)
    own = None if context.args else finished
    config = _asked(_loaded(context.args) if own is None else own.config)
    out = out or (Path() if run is None else run) / "inversion.html"
    for name, path in (("--out", out), ("--json", json_file)):
        check_out(name, path)
    shown = public or (config.data.public if images is None else None)
    if run is not None and not shown:
        raise UsageError(
            f"--run={run}: a report shows only images that anyone may see; "
            "say with --public why these may be"
        )
    try:
        with orderly_end():
            recipe = _planned(config) if own is None else own.recipe
            page = _page(config, recipe, images, shown, count)
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing was written.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _write(page, out, json_file)
    if finished is not None:
        _put(page, finished)
    typer.echo(page.answer)
    typer.echo(str(out))


def _finished(run: Path) -> FinishedRun:
    from simulations.audit.run import FinishedRun

    return FinishedRun.open(run)


def _loaded(arguments: list[str]) -> Config:
    import configs

    for word in arguments:
        if word.startswith("-"):
            raise UsageError(f"{word}: no such option; see fedward audit inversion --help")
    return configs.load(arguments)


def _planned(config: Config) -> Recipe:
    from server.recipe import plan

    return plan(config, num_patients=_PLANNED_PATIENTS)


def _asked(config: Config) -> Config:
    """The configuration, if there is something to show.

    Raises:
        UsageError: if it asks for no privacy, or for volumes.
    """
    from common.config import StudyKind

    if not config.privacy.private:
        raise UsageError("privacy=none: the update is shown without privacy in any case")
    if config.data.kind is StudyKind.ct_volumes:
        raise UsageError("data.kind=ct_volumes: the inversion is of images, not volumes")
    return config


def _page(
    config: Config, recipe: Recipe, folder: Path | None, public: str | None, count: int
) -> InversionPage:
    from client.audit.inversion import Victim
    from common.seeds import SimulatedSeeds
    from simulations.audit.inversion_page import InversionPage
    from simulations.progress_bar import ProgressBar
    from simulations.sites import shared_model

    cases = _of_study(config, count) if folder is None else _of_folder(config, folder, count)
    model = shared_model(config, 1 + max(1, *(label for _, label in cases)))
    rows, epsilon = [], 0.0
    with ProgressBar() as progress:
        for number, (image, label) in enumerate(cases):
            # the same noise in two updates would cancel
            seeds = SimulatedSeeds(run_seed=config.seed, site=f"hospital-{number}")
            row, epsilon = _row(Victim(model=model, seeds=seeds), recipe, image, label)
            rows.append(row)
            progress("attacking updates", number + 1, len(cases))
    target, rounds = config.privacy.epsilon_target, config.federation.rounds
    return InversionPage(
        rows=rows,
        target=(
            "given"
            if target is None
            else f"chosen for epsilon {target:g} over a run of "
            f"{rounds * config.federation.steps_per_round} steps of rate {recipe.sampling_rate:g}"
        ),
        noise_multiplier=recipe.noise_multiplier,
        epsilon=epsilon,
        delta=recipe.delta,
        model=config.model.name,
        source=config.data.name if folder is None else "images of a folder",
        public=public,
    )


def _row(victim: Victim, recipe: Recipe, image: Image, label: int) -> tuple[list[Picture], float]:
    """The image, what its two updates show, and what the private one costs."""
    from client.audit.inversion import plain
    from simulations.audit.inversion_page import Picture, stretched

    original = image[0].astype("float64")
    open_update = victim.attack(image, label, plain(recipe))
    private = victim.attack(image, label, recipe)
    row = [
        Picture(title="in the hospital", pixels=original),
        Picture.beside(original, "from the update, no privacy", open_update.image),
        Picture.beside(original, "from the update, with privacy", private.image),
        Picture.beside(original, "the same, spread out", stretched(private.image)),
    ]
    return row, private.epsilon


def _of_study(config: Config, count: int) -> list[tuple[Image, int]]:
    """The first images of the study and their classes; of findings side by side there is none."""
    from client.data.cohort import load_cohort
    from client.data.study import build
    from common.config import TaskKind

    with tempfile.TemporaryDirectory(prefix="fedward-audit-") as folder:
        study = build(
            config.data,
            num_sites=config.federation.num_sites,
            phantom_dir=Path(folder),
            secret=secrets.token_bytes(32),  # nobody sees who is who
        )
        if study.task.kind is TaskKind.multilabel:
            raise UsageError("data.labels.kind=multilabel: the inversion is shown on one label")
        cohort = load_cohort(study, study.records[:count], image_size=config.data.image_size)
    return [(image, int(label)) for image, label in zip(cohort.images, cohort.labels, strict=True)]


def _of_folder(config: Config, folder: Path, count: int) -> list[tuple[Image, int]]:
    from client.data.image import read_image, resize

    if not folder.is_dir():
        raise UsageError(f"--images={folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)[:count]
    if not paths:
        raise UsageError(f"--images={folder}: no PNG or JPEG image in it")
    found = []
    for number, path in enumerate(paths):
        try:
            found.append((resize(read_image(path), config.data.image_size)[None], 0))
        except DataError as error:
            raise UsageError(f"--images={folder}: image {number + 1} {error}") from error
    return found


def _put(page: InversionPage, finished: FinishedRun) -> None:
    """Into the run's folder and its report."""
    from simulations.audit.evidence import write_pages
    from simulations.audit.inversion_page import with_pictures

    path = finished.run_dir.path / "inversion.json"
    try:
        write_atomically(path, json.dumps(with_pictures(page), indent=2, allow_nan=False) + "\n")
        write_pages(finished.run_dir, finished.result)
    except OSError as error:
        raise UsageError(f"--run={finished.run_dir.path}: {error.strerror}") from error


def _write(page: InversionPage, out: Path, json_file: Path | None) -> None:
    from simulations.audit.inversion_page import render

    mode = 0o644 if page.public else 0o600
    files = {out: render(page)}
    if json_file is not None:
        files[json_file] = json.dumps(page.to_dict(), indent=2, allow_nan=False) + "\n"
    for path, content in files.items():
        try:
            write_atomically(path, content, mode=mode)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error

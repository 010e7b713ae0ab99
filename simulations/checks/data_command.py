"""``fedward check-data``: what a site's engineer should know before anything is trained."""

from __future__ import annotations

import json
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import UsageError
from simulations.progress_bar import ProgressBar

if TYPE_CHECKING:
    from client.data.check.finding import Finding
    from client.data.check.size import NoiseToSignal
    from client.data.study import Record, Study
    from common.config import Config
    from simulations.checks.page import CheckPage

EXIT_USAGE = 2


def check_data(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings as in simulate: experiment=NAME data.root=FOLDER ..."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the page with pictures to this HTML file.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write counts and findings to this file.")
    ] = None,
) -> None:
    """Check a study: counts, unreadable files, duplicates, headers, size. Stays in the hospital.

    OVERRIDES are settings as in simulate: experiment=NAME data.root=FOLDER ...

    Exit codes: 0 nothing blocks training (there may be warnings); 2 something does, or bad input.
    """
    import configs
    from common.files import check_out, write_atomically
    from simulations.checks.page import render, to_dict

    check_out("--out", out)
    check_out("--json", json_file)
    page = check(configs.load(overrides or []))
    try:
        if out is not None:
            write_atomically(out, render(page), mode=0o600)
        if json_file is not None:
            write_atomically(json_file, json.dumps(to_dict(page), indent=2) + "\n", mode=0o600)
    except OSError as error:
        raise UsageError(f"{error.filename or out or json_file}: {error.strerror}") from error
    for line in _lines(page):
        typer.echo(line)
    for path in (out, json_file):
        if path is not None:
            typer.echo(f"{path} (stays in the hospital)")
    raise typer.Exit(EXIT_USAGE if page.blocking else 0)


def check(config: Config) -> CheckPage:
    """Opens the study of ``config`` and checks it.

    Raises:
        UsageError: The study cannot be opened at all.
    """
    from client.data.check.study_check import check_study
    from client.data.study import build
    from simulations.checks.page import CheckPage

    with tempfile.TemporaryDirectory(prefix="fedward-check-") as folder:
        study = build(
            config.data,
            num_sites=config.federation.num_sites,
            phantom_dir=Path(folder),
            secret=secrets.token_bytes(32),  # hashes of patients are compared here, never kept
        )
        with ProgressBar() as progress:
            found = check_study(study, config.data, progress)
        shares, more = _dealt(study, config, blocked=found.blocked)
        cohorts, recipe = _noise(shares, study, config)
    from client.data.check.size import too_small

    # The federation is what is trained; what a single site could do alone is in the table.
    more += too_small(cohorts[-1]) if cohorts else []
    return CheckPage(
        check=found, task=study.task, more=tuple(more), cohorts=tuple(cohorts), recipe=recipe
    )


def _dealt(
    study: Study, config: Config, *, blocked: bool
) -> tuple[dict[str, tuple[Record, ...]], list[Finding]]:
    """Training patients by simulated site, or what keeps them from being split and dealt out."""
    from client.data.check.finding import Finding, Severity
    from client.data.split import split_patients
    from simulations.partition import partition

    try:
        split = split_patients(
            study.records,
            val_fraction=config.data.val_fraction,
            test_fraction=config.data.test_fraction,
            seed=config.split_seed,
        )
        sites = config.federation.num_sites
        seed = config.partition_seed
        return partition(split.train, config.partition, num_sites=sites, seed=seed), []
    except UsageError as error:
        if blocked:  # said already, by row
            return {}, []
        finding = Finding(
            code="cannot_be_dealt_out",
            severity=Severity.blocks,
            text=f"Patients cannot be split or dealt out: {error}.",
            remedy="Change the setting that is named, or the table.",
        )
        return {}, [finding]


def _noise(
    shares: dict[str, tuple[Record, ...]], study: Study, config: Config
) -> tuple[list[NoiseToSignal], str]:
    """Noise over signal of one hospital with all patients, the smallest site, and all sites."""
    if not config.privacy.private:
        return [], "No privacy is asked for (privacy=none), so there is no noise."
    if not shares:
        return [], "Not computed: the study cannot be split and dealt out yet."
    from client.data.check.size import NoiseToSignal
    from server.recipe import most_steps, plan

    sizes = {name: len({record.patient for record in members}) for name, members in shares.items()}
    total, smallest = sum(sizes.values()), min(sizes, key=lambda name: sizes[name])
    recipe = plan(config, num_patients=total)
    steps = most_steps(config)
    num_weights = _num_weights(study, config)

    def cohort(who: str, num_patients: int, num_sites: int = 1) -> NoiseToSignal:
        return NoiseToSignal(
            who=who,
            num_patients=num_patients,
            num_sites=num_sites,
            num_weights=num_weights,
            sampling_rate=recipe.sampling_rate,
            steps=steps,
            noise_multiplier=recipe.noise_multiplier,
        )

    cohorts = [cohort("this folder as one hospital", total)]
    if len(sizes) > 1:
        cohorts.append(cohort(f"the smallest simulated hospital ({smallest})", sizes[smallest]))
        cohorts.append(cohort(f"all {len(sizes)} simulated hospitals", total, len(sizes)))
    target = config.privacy.epsilon_target
    asked = "Noise is given" if target is None else f"Target epsilon {target:g}"
    return cohorts, (
        f"{asked} at delta {recipe.delta:.1e} ({recipe.unit} level, {recipe.accountant.upper()} "
        f"accountant, all {steps} steps): noise multiplier {recipe.noise_multiplier:.4g}, sampling "
        f"rate {recipe.sampling_rate:g}"
    )


def _num_weights(study: Study, config: Config) -> int:
    from client.data.study import ImageKind
    from simulations.sites import shared_model

    depth = config.data.volume.depth if study.image_kind is ImageKind.volume else None
    model = shared_model(config, study.task.num_outputs, depth).build()
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _lines(page: CheckPage) -> list[str]:
    """What the terminal shows."""
    summary = page.check.summary
    images, patients = (f"{n:,}" for n in (summary.num_images, summary.num_patients))
    lines = [
        f"{summary.study}: {images} {summary.kind}s, {patients} patients",
        *(
            f"  {one.name}: {one.images:,} images, {one.patients:,} patients"
            for one in summary.labels
        ),
    ]
    for finding in page.findings:
        rows = ", ".join(map(str, finding.rows[:8])) + (", ..." if len(finding.rows) > 8 else "")
        lines.append(f"{page.severity(finding)} {finding.text}" + (f" Rows {rows}" if rows else ""))
    lines += [f"{one.who}: noise over signal {one.ratio:.3g}" for one in page.cohorts]
    lines.append(
        f"{page.obstacle} {page.blocking[0].remedy}"
        if page.blocking
        else f"Nothing blocks training ({page.tally})."
    )
    return lines

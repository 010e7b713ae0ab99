"""A comparison as a table: for a spreadsheet, and for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_COLUMNS = ("arm", "augment", "epsilon", "site", "num_seeds", "private", "epsilon_spent", "delta")
_INTERVALS = ("patients", "patients_and_seeds")


def as_csv(comparison: Mapping[str, Any]) -> str:
    """One row for each cell, and one for each hospital that trains alone.

    An epsilon without bound is ``inf``; a figure that could not be measured is empty.
    """
    text = io.StringIO(newline="")
    rows = list(_rows(comparison))
    columns = list(rows[0]) if rows else list(_COLUMNS)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(comparison: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for cell in comparison["cells"]:
        yield _row(cell, "", cell["figures"])
        for site, told in cell["sites"].items():
            yield _row(cell, site, told["figures"])


def _row(cell: Mapping[str, Any], site: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    privacy = cell["privacy"]
    values = (
        cell["arm"],
        cell["augment"],
        _bounded(cell["epsilon"]),
        site,
        len(cell["seeds"]),
        privacy["private"],
        _bounded(privacy["epsilon"]),
        privacy["delta"],
    )
    row: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
    for name, summary in figures.items():
        row[name] = summary["patients"]["value"]
        row[f"{name}_sd_over_seeds"] = summary["standard_deviation"]
        for kind in _INTERVALS:
            low, high = ((summary[kind] or {}).get("ci95")) or ("", "")
            row |= {f"{name}_{kind}_low": low, f"{name}_{kind}_high": high}
    return row


def _bounded(epsilon: float | None) -> float | str:
    return "inf" if epsilon is None else epsilon


def as_lines(comparison: Mapping[str, Any]) -> Iterator[str]:
    """For a terminal: a row for each cell, the checks, what is missing."""
    rows = [
        ("arm", "synthetic", "epsilon", "spent", "seeds", "AUROC", "95 % interval", "hospitals")
    ]
    rows += [_shown(cell) for cell in comparison["cells"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
    equal = comparison["equal"]
    if equal is not None:
        yield ""
        yield (
            f"{equal['num_test_patients']} test patients, the same for all; epsilon at delta "
            f"{equal['delta']:.1e}, {equal['unit']} level, {equal['accountant'].upper()} "
            "accountant; intervals redraw patients, and seeds where there are several"
        )
    sentences = [one["says"] for one in comparison["checks"]]
    sentences += equal["remarks"] if equal is not None else []
    yield from (f"- {sentence}" for sentence in sentences)
    missing = comparison["missing"]
    if missing:
        yield f"MISSING: {len(missing)} of {len(comparison['trials'])} trials have no result:"
        yield from (f"- {one['trial']}: {one['problem']}" for one in missing)


def _shown(cell: Mapping[str, Any]) -> tuple[str, ...]:
    auroc, privacy = cell["figures"]["auroc"], cell["privacy"]
    estimate = auroc["patients_and_seeds"] or auroc["patients"]
    interval = estimate["ci95"]
    return (
        cell["arm"],
        cell["augment"],
        str(_bounded(cell["epsilon"])),
        "inf" if privacy["epsilon"] is None else f"{privacy['epsilon']:.3f}",
        str(len(cell["seeds"])),
        _three(estimate["value"]),
        "-" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}",
        _span([told["figures"]["auroc"]["patients"]["value"] for told in cell["sites"].values()]),
    )


def _span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):.3f}-{max(known):.3f}" if known else ""


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

"""The tables of a comparison's page, each of which is a CSV file too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from simulations.comparison.curves import (
    Comparison,
    estimate,
    exceeds,
    leaks,
    named,
    spaced,
    span_of_runs,
)
from simulations.comparison.published import SOURCE, published
from simulations.comparison.sheet import Column, Kind, Sheet, file_name
from simulations.comparison.tuning_sheet import tuning

_WHO = (
    Column(heading="Arm", name="arm"),
    Column(heading="Synthetic images", name="augment"),
    Column(heading="Epsilon", name="epsilon", kind=Kind.target),
)
_AT_THRESHOLD = ("sensitivity", "specificity", "f1", "balanced_accuracy", "accuracy")
_RANKED = {"auprc": "AUPRC, looking for it", "auprc_negative": "AUPRC, looking for its absence"}
_CALIBRATION = {"ece": "ECE", "brier": "Brier score"}
_GAPS = {
    "auroc": "AUROC gap",
    "accuracy": "Accuracy gap",
    "false_negative_rate": "Underdiagnosis gap",
    "equalised_odds": "Equalised odds difference",
}
_OF_GROUP = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "spd": "Accuracy against the others (SPD)",
    "false_negative_rate": "Missed (underdiagnosis)",
    "false_positive_rate": "False alarms",
    "ece": "ECE",
}
_HONEST = {True: "as claimed, by the image", False: "none"}
_ABOUT = {
    "federation": "federated against one place",
    "alone": "a hospital alone against the federation",
    "privacy": "privacy against none",
    "synthetic": "with synthetic images against without",
    "setting": "a setting against the arm without it",
}


def auroc(comparison: Comparison) -> Sheet:
    """Each cell with its AUROC, the points of the figure at the top."""
    return Sheet(
        name="auroc",
        caption=(
            f"AUROC of each way of training on the same {_tested(comparison)}, with 95 % "
            f"intervals {_redrawn(comparison)}. Guessing gives 0.5."
        ),
        columns=(
            *_WHO,
            Column(heading="AUROC", name="auroc", kind=Kind.estimate),
            Column(heading="Standard deviation over seeds", name="sd", kind=Kind.spread),
            Column(heading="Seeds, each with its AUROC", name="by_seed"),
            Column(heading="Seeds without a result", name="missing_seeds"),
        ),
        rows=tuple(
            (
                *_who(cell),
                estimate(cell["figures"]["auroc"]),
                cell["figures"]["auroc"]["standard_deviation"],
                _seeds(cell["figures"]["auroc"]["by_seed"]),
                ", ".join(map(str, cell["missing_seeds"])),
            )
            for cell in comparison["cells"]
        ),
    )


def privacy(comparison: Comparison) -> Sheet:
    """What training alone would claim beside what holds."""
    equal = comparison["equal"]
    return Sheet(
        name="privacy",
        caption=(
            "Epsilon as training alone would claim it, beside the one that holds, of the run that "
            "spent most, rounded up: every hospital's whole ledger, synthetic images and initial "
            f"weights included ({equal['unit']} level, {equal['adjacency']} adjacency, "
            f"{equal['accountant'].upper()} accountant, {equal['accountant_version']}). By own "
            "noise alone: what holds for a hospital that trusts none of the others; it differs "
            "where noise is shared under secure aggregation."
        ),
        columns=(
            *_WHO,
            Column(heading="Claimed", name="epsilon_claimed", kind=Kind.epsilon),
            Column(heading="Honest", name="epsilon_honest", kind=Kind.epsilon),
            Column(heading="By own noise alone", name="epsilon_alone", kind=Kind.epsilon),
            Column(heading="Delta", name="delta", kind=Kind.number),
            Column(heading="Noise multiplier", name="noise_multiplier", kind=Kind.number),
            Column(heading="Training patients", name="num_patients"),
            Column(heading="In words", name="words"),
        ),
        rows=tuple(
            (
                *_who(cell),
                cell["privacy"]["epsilon_claimed"],
                cell["privacy"]["epsilon"],
                cell["privacy"]["epsilon_alone"],
                cell["privacy"]["delta"],
                cell["privacy"]["noise_multiplier"],
                " or ".join(map(str, cell["privacy"]["num_patients"])),
                _privacy_words(cell),
            )
            for cell in comparison["cells"]
        ),
    )


def _privacy_words(cell: Mapping[str, Any]) -> str:
    if leaks(cell):
        return "NOT private: something made without privacy from these patients was used"
    if exceeds(cell):
        return "private, at more than was asked for: what it was made with was paid too"
    return "private" if cell["privacy"]["private"] else "not private, as asked"


def differences(comparison: Comparison) -> Sheet:
    """Every pair, its difference, and how sure it is."""
    return Sheet(
        name="differences",
        caption=(
            "Differences of the AUROC and of the AUPRC in shared redraws, first minus second, "
            f"with 95 % intervals {_redrawn(comparison)}. p: two-sided, of the AUROC, corrected by "
            "Holm for the number of rows with the same question."
        ),
        columns=(
            Column(heading="First", name="a"),
            Column(heading="Second", name="b"),
            Column(heading="Question", name="about"),
            Column(heading="Difference in AUROC", name="auroc", kind=Kind.change),
            Column(heading="p (Holm)", name="p_holm", kind=Kind.chance),
            Column(heading="In words", name="words"),
            Column(heading="Difference in AUPRC", name="auprc", kind=Kind.change),
        ),
        rows=tuple(
            (
                named(one["a"]),
                named(one["b"]),
                _ABOUT[one["about"]],
                _change(one["figures"]["auroc"]),
                one["p_holm"],
                _verdict(one["figures"]["auroc"]),
                _change(one["figures"]["auprc"]),
            )
            for one in comparison["differences"]
        ),
    )


def figures(comparison: Comparison) -> Sheet:
    """What else was measured of each cell."""
    named_figures = {
        **{name: spaced(name).capitalize() for name in _AT_THRESHOLD},
        **_RANKED,
    }
    named_figures["f1"] = "F1"
    return _of_cells(
        comparison,
        named_figures,
        name="figures",
        caption=(
            "At the threshold chosen on the validation images (Youden's index), and average "
            f"precision; 95 % intervals {_redrawn(comparison)}."
        ),
    )


def calibration(comparison: Comparison) -> Sheet:
    """How far probabilities are off."""
    return _of_cells(
        comparison,
        _CALIBRATION,
        name="calibration",
        caption=(
            "How far the models' probabilities are off (less is better). ECE: expected calibration "
            "error, 10 bins of equal mass; a calibrated model does not have 0 either, and "
            "redrawing makes it larger: “mostly chance” stands where the figure is outside its own "
            "interval. Brier score: mean squared error of the probability. The reliability curves "
            "stand in the report of each trial."
        ),
    )


def hospitals(comparison: Comparison) -> Sheet:
    """Each hospital alone, one row for each cell of its arm."""
    return Sheet(
        name="hospitals",
        caption=(
            f"Each hospital's own model on the same {_tested(comparison)}, of all hospitals; 95 % "
            f"intervals {_redrawn(comparison)}."
        ),
        columns=(
            Column(heading="Hospital", name="site"),
            *_WHO,
            Column(heading="Training patients", name="num_patients", kind=Kind.count),
            Column(heading="AUROC", name="auroc", kind=Kind.estimate),
        ),
        rows=tuple(
            (site, *_who(cell), told["num_patients"], estimate(told["figures"]["auroc"]))
            for cell in comparison["cells"]
            for site, told in cell["sites"].items()
        ),
    )


def gaps(comparison: Comparison, column: str) -> Sheet:
    """From the worst group to the best."""
    return Sheet(
        name=f"gaps_{file_name(column)}",
        caption=(
            f"Gaps between groups by {column}, from the worst to the best, mean over runs; in "
            "brackets the 95 % interval, of several runs from the lowest end to the highest. A gap "
            "is never below 0: one that begins above 0 is no sign of unfairness."
        ),
        columns=(
            *_WHO,
            *(
                Column(heading=heading, name=name, kind=Kind.estimate)
                for name, heading in _GAPS.items()
            ),
        ),
        rows=tuple(
            (
                *_who(cell),
                *(_of_runs(cell["groups"][column]["gaps"].get(name)) for name in _GAPS),
            )
            for cell in comparison["cells"]
            if column in cell["groups"]
        ),
    )


def groups(comparison: Comparison, column: str) -> Sheet:
    """Every group of every cell."""
    return Sheet(
        name=f"groups_{file_name(column)}",
        caption=(
            f"Each group by {column}, mean over runs; intervals as above. SPD: accuracy minus that "
            "of all other groups together (Tayebi Arasteh et al. 2024). Missed: share of images "
            "with the label that the model calls clear."
        ),
        columns=(
            Column(heading=column.capitalize(), name="group"),
            *_WHO,
            Column(heading="Test patients", name="num_patients", kind=Kind.count),
            *(
                Column(
                    heading=heading,
                    name=name,
                    kind=Kind.change if name == "spd" else Kind.estimate,
                )
                for name, heading in _OF_GROUP.items()
            ),
        ),
        rows=tuple(
            (
                group["value"],
                *_who(cell),
                group.get("num_patients"),
                *(_of_runs(group.get(name)) for name in _OF_GROUP),
            )
            for cell in comparison["cells"]
            for group in cell["groups"].get(column, {"groups": ()})["groups"]
        ),
    )


def columns(comparison: Comparison) -> list[str]:
    """Group columns that some cell has."""
    return list(dict.fromkeys(name for cell in comparison["cells"] for name in cell["groups"]))


def correlations(comparison: Comparison) -> Sheet:
    """Pearson's r of a group's SPD with epsilon."""
    return Sheet(
        name="correlations",
        caption=(
            "Pearson's r between epsilon and a group's SPD, over finite epsilons (Tayebi Arasteh "
            "et al. 2024). A few epsilons are few pairs: read p, not r."
        ),
        columns=(
            Column(heading="Group", name="group"),
            Column(heading="Arm", name="arm"),
            Column(heading="Synthetic images", name="augment"),
            Column(heading="r", name="r", kind=Kind.number),
            Column(heading="p", name="p", kind=Kind.chance),
        ),
        rows=tuple(
            (
                f"{one['column']} {one['group']}",
                one["arm"],
                _use(one["augment"]),
                one["r"],
                one["p_value"],
            )
            for one in comparison["correlations"]["spd_and_epsilon"]
        ),
    )


def references(comparison: Comparison) -> Sheet:
    """What others published on the same task."""
    return Sheet(
        name="published",
        caption=f"AUROC on the CBIS-DDSM test masses, mean and one standard deviation over three "
        f"seeds ({SOURCE}).",
        columns=(
            Column(heading="Published setting", name="setting"),
            Column(heading="Claimed", name="epsilon_claimed", kind=Kind.target),
            Column(heading="Honest", name="epsilon_honest"),
            Column(heading="AUROC", name="auroc", kind=Kind.number),
            Column(heading="Standard deviation", name="sd", kind=Kind.spread),
        ),
        rows=tuple(
            (
                one.setting,
                one.epsilon if math.isfinite(one.epsilon) else None,
                "infinite" if one.leaks else _HONEST[math.isfinite(one.epsilon)],
                one.auroc,
                one.standard_deviation,
            )
            for one in published(comparison["study"]["name"])
        ),
    )


def trials(comparison: Comparison) -> Sheet:
    """Every run, and where it lies."""
    return Sheet(
        name="trials",
        caption="Every trial; each has a report of its own in its folder.",
        columns=(
            *_WHO,
            Column(heading="Hospital", name="site"),
            Column(heading="Seed", name="seed", kind=Kind.number),
            Column(heading="Folder", name="folder"),
            Column(heading="Problem", name="problem"),
        ),
        rows=tuple(
            (*_who(one), one["site"], one["seed"], one["folder"], one["problem"])
            for one in comparison["trials"]
        ),
    )


def every(comparison: Comparison) -> Iterator[Sheet]:
    """All that have a row."""
    found: list[Sheet] = [auroc(comparison)]
    if comparison["equal"] is not None:
        found += [privacy(comparison), differences(comparison), figures(comparison)]
        found += [calibration(comparison), hospitals(comparison)]
    for column in columns(comparison):
        found += [gaps(comparison, column), groups(comparison, column)]
    found += [correlations(comparison), references(comparison), tuning(comparison)]
    found.append(trials(comparison))
    return (one for one in found if one.rows)


def _of_cells(
    comparison: Comparison, found: Mapping[str, str], *, name: str, caption: str
) -> Sheet:
    return Sheet(
        name=name,
        caption=caption,
        columns=(
            *_WHO,
            *(
                Column(heading=heading, name=figure, kind=Kind.estimate)
                for figure, heading in found.items()
            ),
        ),
        rows=tuple(
            (*_who(cell), *(estimate(cell["figures"][figure]) for figure in found))
            for cell in comparison["cells"]
        ),
    )


def _who(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return cell["arm"], _use(cell["augment"]), cell["epsilon"]


def _use(augment: str) -> str:
    return "none" if augment == "none" else spaced(augment)


def _seeds(by_seed: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{seed}: {'not measured' if value is None else format(value, '.3f')}"
        for seed, value in by_seed.items()
    )


def _change(told: Mapping[str, Any]) -> dict[str, Any]:
    evidence = told["patients_and_seeds"] or told["patients"]
    return {
        "value": told["value"],
        "ci95": None if evidence is None else evidence["ci95"],
        "unsaid": told["unsaid"],
    }


def _verdict(told: Mapping[str, Any]) -> str:
    """What the interval allows to be said."""
    ends = _change(told)["ci95"]
    if told["value"] is None or ends is None:
        return "not measured"
    if ends[0] <= 0 <= ends[1]:
        return "no difference can be told"
    return "first is better" if ends[0] > 0 else "second is better"


def _of_runs(figure: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    told = {name: figure[name] for name in ("value", "unsaid")}
    return told | {"ci95": None if figure["value"] is None else span_of_runs(figure)}


def _tested(comparison: Comparison) -> str:
    equal = comparison["equal"]
    if equal is None:
        return "test patients"
    return f"{equal['num_test_images']} images of {equal['num_test_patients']} test patients"


def _redrawn(comparison: Comparison) -> str:
    """What the intervals stand on."""
    several = any(len(cell["seeds"]) > 1 for cell in comparison["cells"])
    if several:
        return "from redrawing patients, and seeds where there are several"
    return "from redrawing patients (one seed: they speak of these very models)"

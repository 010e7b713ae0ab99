"""The model card of a run: `result.json` in, one Markdown file out, to travel with the weights.

After Mitchell et al. 2019, "Model Cards for Model Reporting", https://arxiv.org/abs/1810.03993.
It says nothing that ``result.json`` does not hold, so it may go wherever that file may go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_atomically
from simulations.report.page import Page, Result
from simulations.report.run_page import answer
from simulations.report.wording import decimals, estimate, plain, round_up

_PLACE = str.maketrans({"|": "\\|", "\n": " ", "\r": " ", "<": "&lt;", ">": "&gt;"})
_FIGURES = {
    "sensitivity": "Sensitivity at the threshold",
    "specificity": "Specificity at the threshold",
    "f1": "F1 at the threshold",
    "balanced_accuracy": "Balanced accuracy at the threshold",
    "auprc": "AUPRC, looking for the label",
    "auprc_negative": "AUPRC, looking for its absence",
    "ece": "Expected calibration error",
    "brier": "Brier score",
}
_TRUST = {
    "local": "local: each hospital's update is private on its own, before it leaves",
    "secure_aggregation": "secure aggregation: noise is shared, only the sum is seen",
}
_BY_GROUP = {
    "auroc": "AUROC",
    "false_negative_rate": "Missed (underdiagnosis)",
    "false_positive_rate": "False alarms",
    "spd": "Accuracy against the others (SPD)",
    "ece": "ECE",
}


_REFUTED = (
    "**Refuted.** An audit of this model found more than its epsilon allows. The epsilon does not "
    "hold, whatever this card says of privacy."
)


def render(result: Result, *, refuted: bool = False) -> str:
    """The card of a run that left a model, as Markdown.

    Args:
        result: the content of ``result.json``; its ``final`` must not be ``None``.
        refuted: whether an audit found that a claimed epsilon does not hold.

    Raises:
        ValueError: the run left no model.
    """
    page = Page(result)
    if page.test is None:
        raise ValueError("result: a run without a final model has no card")
    parts = (_head, _use, _data, _privacy, _figures, _groups, _origin, _caveats)
    lines = [line for part in parts for line in (*part(page), "")]
    if refuted:
        lines[2:2] = [_REFUTED, ""]
    return "\n".join(lines)


def write(result: Result, path: Path, *, refuted: bool = False) -> None:
    """Write the card to ``path``, whole or not at all.

    Raises:
        ValueError: as `render`.
        OSError: the folder cannot be written.
    """
    write_atomically(path, render(result, refuted=refuted))


def _head(page: Page) -> Iterator[str]:
    model = page.config.get("model") or {}
    finetune = (page.config.get("finetune") or {}).get("mode")
    size = (page.config.get("data") or {}).get("image_size")
    yield f"# Model card: {_safe(page.title)}"
    yield ""
    yield _safe(answer(page.result))
    yield ""
    yield from _table(
        ("model", ""),
        [
            ("weights", "`weights.safetensors`"),
            ("SHA-256", f"`{page.final.get('weights_sha256')}`"),
            ("architecture", model.get("architecture")),
            ("weights that were trained", finetune),
            ("input", f"images of {size} pixels a side" if size else None),
            ("answers", ", ".join(page.names)),
            ("trained", f"{page.final.get('round')} rounds, written {page.result.get('created')}"),
            ("state of the run", page.state),
        ],
    )


def _use(page: Page) -> Iterator[str]:
    about = "phantoms" if page.phantom else f"images like those of the study {page.study}"
    yield "## What it is for"
    yield ""
    yield (
        f"Research on training across hospitals: it scores {about} for "
        f"{_safe(', '.join(page.names))}. A person who reads the figures below should be able to "
        "say whether a method is worth a study."
    )
    yield ""
    yield "Not for:"
    yield ""
    yield "- diagnosis, triage or any decision about a person; it is no medical device;"
    yield "- images from other devices, protocols, age groups or countries without a new test;"
    yield "- groups of which the tables below say that there are too few patients to say anything;"
    yield "- a claim of privacy beyond the statement below."


def _data(page: Page) -> Iterator[str]:
    test = page.test or {}
    yield "## Data"
    yield ""
    public = f"It counts as public: {_safe(page.public)}." if page.public else "It is not public."
    images = "" if page.num_train_images is None else f", {page.num_train_images} images"
    yield (
        f"Study {_safe(page.study)}. {public} {page.num_train_patients} training {page.persons}"
        f"{images}, at {len(page.sites)} simulated hospital{'' if len(page.sites) == 1 else 's'}; "
        f"tested on {test['num_images']} images of {test['num_patients']} {page.persons} that no "
        "hospital trained on."
    )
    yield ""
    yield from _table(
        ("hospital", f"training {page.persons}", "rounds trained"),
        [(one.name, one.num_patients, one.rounds_trained) for one in page.sites],
    )


def _privacy(page: Page) -> Iterator[str]:
    synthetic = page.synthetic
    yield "## Privacy statement"
    yield ""
    if page.epsilon is None:
        yield (
            f"**Not private.** Epsilon is infinite: nothing limits what the model can reveal about "
            f"each hospital's {page.persons}."
        )
    else:
        yield (
            f"Epsilon ≤ **{round_up(page.epsilon)}** for every hospital's {page.persons} "
            f"({_safe(page.terms)}). It holds towards the server, the other hospitals and whoever "
            f"gets the model, provided that no {page.person} is at two hospitals."
        )
    spends = ((page.result.get("privacy") or {}).get("sites") or {}).values()
    alone = [spend["epsilon_alone"] for spend in spends if "epsilon_alone" in spend]
    if alone:
        worst = None if None in alone else max(alone)
        yield ""
        yield (
            "That rests on secure sums, in which hospitals share their noise. For whoever saw one "
            f"hospital's update alone epsilon would be {'≤ ' if worst is not None else ''}"
            f"{round_up(worst)}."
        )
    claimed = (synthetic or {}).get("epsilon_claimed_without_them")
    if page.epsilon is None and claimed is not None:
        yield ""
        yield (
            f"Training alone would claim epsilon ≤ {round_up(claimed)}; that leaves out how the "
            "synthetic images were made."
        )
    yield ""
    yield from _mechanism(page)
    if page.epsilon is not None:
        yield ""
        yield from _by_site(page)
    level = page.site_level
    if level:
        yield ""
        yield (
            f"A whole hospital is protected towards whoever gets the models: epsilon ≤ "
            f"{round_up(level['epsilon'])} (delta {round_up(level['delta'])}, site level, "
            f"{level['accountant'].upper()} accountant). The server adds this noise and sees more."
        )


def _mechanism(page: Page) -> Iterator[str]:
    """How it was made and counted."""
    privacy = page.privacy
    if privacy["mechanism"] in {None, "none"}:
        yield "Trained without differential privacy: no clipping, no noise, nothing to account for."
        return
    trust = (page.result.get("privacy") or {}).get("trust") or "local"
    yield from _table(
        ("what", "value"),
        [
            ("unit", privacy["unit"]),
            ("adjacency", f"{privacy['adjacency']} (one unit's data replaced by nothing)"),
            ("delta", None if privacy["delta"] is None else round_up(privacy["delta"])),
            ("mechanism", page.mechanism),
            (
                "sampler",
                (
                    f"{privacy['sampler']}, rate {plain(privacy['sampling_rate'])}, "
                    f"{privacy['steps_per_round']} steps in a round"
                ),
            ),
            ("noise multiplier, clipping norm", _noise(privacy)),
            ("accountant", f"{page.accountant}, {privacy['accountant_version']}"),
            ("trust", _TRUST.get(trust, trust)),
        ],
    )


def _noise(privacy: Mapping[str, Any]) -> str:
    if privacy["noise_multiplier"] is None:
        return "no noise"
    return f"{plain(privacy['noise_multiplier'])}, {plain(privacy['max_grad_norm'])}"


def _by_site(page: Page) -> Iterator[str]:
    """What each ledger says, and the bound on every membership test."""
    rates = page.tpr_rates
    at = [f"{plain(float(rate) * 100)} % false alarms" for rate in rates]
    yield from _table(
        (
            "hospital",
            "epsilon",
            "by RDP",
            "cap",
            *(f"members found at most, at {words}" for words in at),
        ),
        [
            (
                one.name,
                round_up(one.epsilon),
                round_up(one.epsilon_rdp) if one.epsilon_rdp is not None else "not stated",
                "none" if one.epsilon_budget is None else plain(one.epsilon_budget),
                *(
                    f"{round_up(one.tpr_bounds[rate] * 100, 1)} %"
                    if rate in one.tpr_bounds
                    else "not stated"
                    for rate in rates
                ),
            )
            for one in page.sites
        ],
    )


def _figures(page: Page) -> Iterator[str]:
    test = page.test or {}
    few = test.get("num_patients_of_class", 10) < 10
    yield "## Figures"
    yield ""
    yield (
        f"On the test {page.persons}, without noise; 95 % intervals from redrawing {page.persons}. "
        "Thresholds were chosen on validation images."
        + (f" There are few {page.persons}: the intervals are too narrow." if few else "")
    )
    yield ""
    ends = test.get("auroc_ci95")
    auroc = {"value": test.get("auroc"), "ci95": ends, "unsaid": None}
    mean = f"mean over {page.several}" if page.several else page.names[0]
    rows = [(f"AUROC, {mean}", estimate(auroc))]
    figures = test.get("figures") or {}
    rows += [
        (words, estimate(figures[name])) for name, words in _FIGURES.items() if name in figures
    ]
    yield from _table(("figure", "value"), rows)
    if page.several:
        yield ""
        yield from _labels(page)
    elif page.labels and page.labels[0].get("threshold") is not None:
        yield ""
        yield f"Threshold: {page.labels[0]['threshold']:.4f}."


def _labels(page: Page) -> Iterator[str]:
    yield from _table(
        ("label", "images with it", "AUROC", "threshold"),
        [
            (
                one["name"],
                f"{one['num_positive']} of {one['num_images']}",
                estimate(
                    {
                        "value": one["auroc"],
                        "ci95": one["auroc_ci95"],
                        "unsaid": None if one["auroc"] is not None else "not_measured",
                    }
                ),
                decimals(one.get("threshold")),
            )
            for one in page.labels
        ],
    )


def _groups(page: Page) -> Iterator[str]:
    yield "## By group"
    yield ""
    fairness = page.fairness
    if not fairness:
        yield "The study names no groups, so nobody knows for whom the model does worse."
        return
    yield (
        "Signed differences between groups that are treated alike leave 0 out in about one case of "
        "twenty. A gap is never below 0."
    )
    for column, chosen in fairness.items():
        yield ""
        yield f"### {_safe(column)}"
        yield ""
        yield from _table(
            ("group", page.persons, *_BY_GROUP.values()),
            [
                (
                    group["value"],
                    group.get("num_patients"),
                    *(
                        estimate(group[name], "{:+.3f}" if name == "spd" else "{:.3f}")
                        for name in _BY_GROUP
                    ),
                )
                for group in chosen["groups"]
            ],
        )
        gaps = chosen["gaps"]
        yield ""
        yield (
            f"From the worst group to the best: AUROC {estimate(gaps['auroc'])}, missed "
            f"{estimate(gaps['false_negative_rate'])}, equalised odds "
            f"{estimate(gaps['equalised_odds'])}."
        )


def _origin(page: Page) -> Iterator[str]:
    model = page.config.get("model") or {}
    yield "## Where it comes from"
    yield ""
    if model.get("weights"):
        reason = _safe(model.get("weights_public") or "no reason stated")
        yield f"- Initial weights: {_safe(Path(str(model['weights'])).name)}; public: {reason}"
    elif not page.initial_weights:
        yield "- Initial weights: random"
    for weights in page.initial_weights:
        yield f"- Initial weights of an earlier run: {_made(weights)}"
    if page.synthetic:
        yield (
            f"- {page.synthetic['num_images']} synthetic images "
            f"({_safe(page.synthetic['use'])}): {_made(page.synthetic)}"
        )
    else:
        yield "- Synthetic images: none"
    made = page.result.get("provenance")
    if made:
        yield f"- The model as a whole: {_kind(made)}. Its provenance is in the weights' metadata."
    versions = ", ".join(f"{name} {version}" for name, version in page.versions.items())
    yield f"- Made with: {_safe(versions)}"


def _made(used: Mapping[str, Any]) -> str:
    concerns = "; from these patients" if used["concerns_these_patients"] else ""
    return f"{_kind(used['provenance'])}{concerns}"


def _kind(made: Mapping[str, Any]) -> str:
    if made["kind"] == "private":
        return f"made with privacy, epsilon ≤ {round_up(made['epsilon'])}"
    words = "public" if made["kind"] == "public" else "made WITHOUT privacy"
    return f"{words} ({_safe(made['reason'])})"


def _caveats(page: Page) -> Iterator[str]:
    yield "## Caveats"
    yield ""
    yield (
        f"- Test and validation {page.persons} have no guarantee: every figure and threshold here "
        "tells something about them."
    )
    yield f"- {_tuning(page)}"
    yield (
        "- This is a simulation and its seeds are known. Epsilon speaks of the algorithm with "
        "fresh, secret noise."
    )
    yield (
        "- One run: intervals do not hold the chance in training, nor another hospital's patients."
    )
    if page.privacy["unit"] == "image":
        yield (
            f"- Image level: this epsilon hides one image. A {page.person} with several images is "
            "protected less."
        )
    if page.incomplete:
        names = ", ".join(_safe(one.name) for one in page.incomplete)
        yield f"- Not every hospital trained in every round: {names}."
    yield "- The whole account, with what is not covered, stands in `report.html`."


def _tuning(page: Page) -> str:
    match page.tuned_on:
        case "private":
            return (
                "**Tuned on private data, and not charged**: runs on the same "
                f"{page.persons} chose these settings. They cost privacy too, and no epsilon here "
                "holds that."
            )
        case "public":
            return "Settings were chosen on public data, as the configuration states."
        case _:
            return (
                "Tuning is not charged: if settings were chosen by looking at other runs on the "
                f"same {page.persons}, those runs cost privacy too."
            )


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_safe, heads))} |"
    yield f"|{'|'.join('---' for _ in heads)}|"
    for row in rows:
        yield f"| {' | '.join(_safe('not stated' if one is None else one) for one in row)} |"


def _safe(text: object) -> str:
    """Text as one line in which nothing is a table's border, or HTML."""
    return str(text).translate(_PLACE)

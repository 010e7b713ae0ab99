"""The page of a run: what it says, that it says it safely, and that a browser is content."""

from __future__ import annotations

import copy
import html
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config import TaskKind
from common.errors import UsageError
from common.evaluation import evaluate
from common.fairness import fairness
from common.messages import Reason
from common.scored import Scored
from common.task import Task
from simulations.report.chart import interval_axis, reliability_chart
from simulations.report.run_page import Page, answer, charts, render, round_up, write

Result = dict[str, Any]
Browser = Callable[[Path], Any]

NUM_ROUNDS = 8


def with_shared_noise(result: Result) -> Result:
    parties = {"num_sites": 3, "max_dropouts": 0, "max_colluders": 1}
    more = {"trust": "secure_aggregation", "secure_aggregation": parties}
    sites = {
        name: {**site, "epsilon_alone": 21.0 + number}
        for number, (name, site) in enumerate(result["privacy"]["sites"].items())
    }
    return {**result, "privacy": {**result["privacy"], **more, "sites": sites}}


def test_shared_noise_is_shown_with_the_trust_that_it_rests_on(result: Result) -> None:
    own = "does not rest on trusting them"
    assert own in render(result)
    assert "collude" not in answer(result)
    shared = with_shared_noise(result)
    alone = 20.0 + len(shared["privacy"]["sites"])
    assert "provided that at most 1 of 3 hospitals collude with the server" in answer(shared)
    assert f"if no other hospital can be trusted, at epsilon ≤ {alone:g}" in answer(shared)
    page = render(shared)
    assert own not in page
    assert "The same, if no other hospital can be trusted" in page
    next(iter(shared["privacy"]["sites"].values()))["epsilon_alone"] = None
    assert "if no other hospital can be trusted, without any bound" in answer(shared)


@pytest.fixture
def result() -> Result:
    """A finished private run on phantoms with three hospitals, as `result.json` holds it."""
    spent = [2.9, 3.9, 4.71, 5.43, 6.1, 6.75, 7.37, 7.9712]
    validation = [0.583, 0.641, 0.702, 0.731, 0.768, 0.779, 0.801, 0.806]
    names = [f"hospital-{number}" for number in (1, 2, 3)]
    return {
        "schema": "fedward.result/1",
        "created": "2026-11-21T12:00:00Z",
        "state": "completed",
        "title": "demo",
        "study": {
            "name": "phantom",
            "public": "generated phantoms, no person in them",
            "num_train_patients": 600,
            "num_train_images": None,
        },
        "config": {
            "title": "demo",
            "seed": 42,
            "data": {"kind": "phantom", "name": "phantom", "image_size": 64, "root": None},
            "privacy": {"mechanism": "dp_sgd", "epsilon": 8.0, "sampling_rate": 0.2},
            "federation": {"num_sites": 3, "rounds": NUM_ROUNDS},
            "model": {"name": "vit_tiny", "weights": None, "weights_public": None},
        },
        "versions": {"fedward": "0.1.0", "python": "3.11.2", "dp_accounting": "0.6.0"},
        "rounds": [
            {
                "round": number,
                "seconds": 8.1,
                "evaluation": {"split": "val", "auroc": auroc},
                "sites": {
                    name: {"status": "trained", "epsilon": epsilon, "reason": None}
                    for name in names
                },
            }
            for number, (epsilon, auroc) in enumerate(zip(spent, validation, strict=True), 1)
        ],
        "final": {
            "round": NUM_ROUNDS,
            "weights_sha256": "9f2c" * 16,
            "test": {
                "auroc": 0.8123,
                "auroc_ci95": [0.7612, 0.8571],
                "auprc_malignant": 0.7934,
                "auprc_benign": 0.8217,
                "num_patients": 200,
                "num_images": 412,
            },
        },
        "privacy": {
            "private": True,
            "mechanism": "dp_sgd",
            "unit": "patient",
            "adjacency": "zero-out",
            "sampler": "poisson",
            "accountant": "pld",
            "accountant_version": "dp_accounting 0.6.0",
            "delta": 1e-5,
            "epsilon_target": 8.0,
            "noise_multiplier": 1.1,
            "max_grad_norm": 1.0,
            "sampling_rate": 0.2,
            "steps_per_round": 4,
            "rounds_planned": NUM_ROUNDS,
            "sites": {
                name: {
                    "num_patients": 200,
                    "epsilon": 7.9712,
                    "epsilon_rdp": 8.61,
                    "epsilon_budget": 8.0,
                    "tpr_bound_at_fpr": {"0.01": 0.6012, "0.001": 0.3},
                }
                for name in names
            },
            "epsilon_federation": 7.9712,
        },
    }


class Outline(HTMLParser):
    """What a test needs of a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self._quiet = False
        self.feed(page)
        self.text = " ".join(" ".join(self.pieces).replace("\u00a0", " ").split()).replace(
            " ,", ","
        )

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._quiet = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.pieces.append(data)

    def count(self, tag: str) -> int:
        return len(self.all(tag))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def without_privacy(result: Result) -> Result:
    """The same run with ``privacy=none``."""
    for entry in result["rounds"]:
        for site in entry["sites"].values():
            site["epsilon"] = None
    result["privacy"] |= {
        "private": False,
        "mechanism": "none",
        "noise_multiplier": None,
        "epsilon_target": None,
        "epsilon_federation": None,
    }
    for site in result["privacy"]["sites"].values():
        site |= {"epsilon": None, "epsilon_rdp": None, "epsilon_budget": None}
        del site["tpr_bound_at_fpr"]
    return result


def on_real_patients(result: Result) -> Result:
    """The same run on a study of patients."""
    result["study"] |= {"name": "cbis_masses", "public": None}
    result["config"]["data"] |= {"kind": "table", "name": "cbis_masses"}
    return result


def with_a_refusing_hospital(result: Result) -> Result:
    """The same run, in which hospital-2 leaves after five rounds."""
    result["state"] = "completed-with-missing-sites"
    for entry in result["rounds"][5:]:
        entry["sites"]["hospital-2"] = {
            "status": "refused",
            "epsilon": 6.1,
            "reason": "budget_exceeded",
        }
    result["privacy"]["sites"]["hospital-2"] |= {"epsilon": 6.1, "epsilon_budget": 6.5}
    return result


def failed_in_round_one(result: Result) -> Result:
    """A run whose hospitals all failed at once, after they had charged their ledgers."""
    result |= {"state": "failed", "rounds": result["rounds"][:1], "final": None}
    result["rounds"][0] |= {"evaluation": None}
    for site in result["rounds"][0]["sites"].values():
        site |= {"status": "failed", "reason": "error"}
    for site in result["privacy"]["sites"].values():
        site["epsilon"] = 2.9
    result["privacy"]["epsilon_federation"] = 2.9
    return result


def not_even_started(_: Result) -> Result:
    """The least that a result may hold."""
    return {"schema": "fedward.result/1", "state": "failed", "privacy": {"private": True}}


FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
    "Hernia",
)  # fmt: skip
CLASSES = ("normal", "bacterial", "viral")
AGES = ("0-30", "30-60", "60-70", ">=70", "unknown")


def measured(result: Result, kind: TaskKind, names: tuple[str, ...], *, grouped: bool) -> Result:
    """The run on a study of that task, with the figures of made-up scores."""
    rng = np.random.default_rng(7)
    patients = np.repeat(np.arange(70), 3)
    if kind is TaskKind.multilabel:
        rates = np.linspace(0.4, 0.01, len(names))
        labels = (rng.random((patients.size, len(names))) < rates).astype(np.int64)
        labels[rng.random(labels.shape) < 0.1] = -1
        labels[:, -1] = 0
        answers = labels
    else:
        labels = rng.integers(max(2, len(names)), size=patients.size)
        answers = np.eye(len(names), dtype=np.int64)[labels] if len(names) > 1 else labels[:, None]
    ages = np.array(AGES)[np.minimum(patients // 17, 4)].astype("U80")
    ages[patients == 69] = "an age band with a long name that goes on and on"
    labels[patients == 69] = 0
    groups = {"sex": np.where(patients % 2 == 0, "F", "M"), "age": ages}
    task = Task(kind=kind, names=names)
    scored = Scored(
        task=task,
        labels=labels,
        scores=answers + rng.normal(size=answers.shape),
        patients=patients,
        groups=groups if grouped else {},
    )
    result["final"]["test"] = evaluate(scored, seed=3).to_dict()
    result["study"]["task"] = {"kind": kind.value, "names": list(names)}
    return on_real_patients(result)


def with_probabilities(result: Result) -> Result:
    """The run on one finding, with a threshold, calibration and fairness; few old patients."""
    rng = np.random.default_rng(7)
    patients = np.repeat(np.arange(70), 3)
    labels = (patients % 2).astype(np.int64)
    scored = Scored(
        task=Task(kind=TaskKind.binary, names=("pneumonia",)),
        labels=labels,
        scores=1 / (1 + np.exp(-labels[:, None] - rng.normal(size=(patients.size, 1)))),
        patients=patients,
        groups={
            "sex": np.where(patients % 4 < 2, "F", "M"),
            "age": np.where(patients < 62, "0-60", ">=60"),
        },
        thresholds=(0.6,),
    )
    result["final"]["test"] = evaluate(scored, seed=3).to_dict() | {
        "fairness": {name: one.to_dict() for name, one in fairness(scored, seed=3).items()}
    }
    result["study"]["task"] = {"kind": "binary", "names": ["pneumonia"]}
    return on_real_patients(result)


def grouped_pneumonia(result: Result) -> Result:
    return measured(result, TaskKind.binary, ("pneumonia",), grouped=True)


def fourteen_findings(result: Result) -> Result:
    return measured(result, TaskKind.multilabel, FINDINGS, grouped=False)


def fourteen_findings_in_groups(result: Result) -> Result:
    return measured(result, TaskKind.multilabel, FINDINGS, grouped=True)


def three_classes_in_groups(result: Result) -> Result:
    return measured(result, TaskKind.multiclass, CLASSES, grouped=True)


def three_classes(result: Result) -> Result:
    return measured(result, TaskKind.multiclass, CLASSES, grouped=False)


def unchanged(result: Result) -> Result:
    return result


VARIANTS: list[Callable[[Result], Result]] = [
    unchanged,
    without_privacy,
    on_real_patients,
    with_a_refusing_hospital,
    failed_in_round_one,
    not_even_started,
    grouped_pneumonia,
    fourteen_findings,
    fourteen_findings_in_groups,
    three_classes,
    three_classes_in_groups,
    with_probabilities,
]


def test_answer_of_a_private_run(result: Result) -> None:
    assert answer(on_real_patients(result)).replace("\u00a0", " ") == (
        "3 simulated hospitals trained a shared model on the study cbis_masses: test AUROC 0.81 "
        "(95 % CI 0.76 to 0.86). Each hospital's patients are protected at epsilon ≤ 7.98 "
        "(delta 1e-5, patient level, DP-SGD, PLD accountant)."
    )
    text = Outline(render(result)).text
    assert "Differentially private, epsilon ≤ 7.98" in text
    assert "NOT private" not in text


def test_phantoms_are_never_called_patients(result: Result) -> None:
    text = Outline(render(result)).text
    assert answer(result) in render(result).replace("&#39;", "'").replace(
        '<span class="whole">1e-5</span>', "1e-5"
    )
    assert "Each hospital's phantoms are protected" in text
    for allowed in (
        "one phantom counted as one patient",
        "Phantoms, not patients.",
        "patient (here: a phantom)",
        "patient privacy.",
    ):
        text = text.replace(allowed, "")
    assert "patient" not in text.lower()
    assert "phantoms" not in Outline(render(on_real_patients(result))).text.lower()


def test_a_run_without_privacy_says_so_plainly(result: Result) -> None:
    page = render(without_privacy(on_real_patients(result)))
    text = Outline(page).text
    assert "⚠ NOT private" in text
    assert (
        "The model is NOT private: it was trained without differential privacy, so nothing limits "
        "what it can reveal about each hospital's patients."
    ) in text
    assert 'class="answer not-private"' in page
    assert "Epsilon infinite" in text
    assert "Why it is not private" in text
    assert "protected at epsilon" not in text
    assert "Differentially private" not in text
    assert 'id="epsilon-title"' not in page


def test_one_unprotected_hospital_makes_the_run_not_private(result: Result) -> None:
    result["privacy"]["sites"]["hospital-2"]["epsilon"] = None
    assert "NOT private: no finite epsilon holds for every hospital" in answer(result)
    assert "Differentially private" not in Outline(render(result)).text


def test_epsilons_of_a_run_marked_not_private_are_not_shown(result: Result) -> None:
    result["privacy"]["private"] = False
    assert "NOT private" in answer(result)
    assert "7.98" not in Outline(render(result)).text


def test_the_largest_epsilon_counts_and_is_rounded_up(result: Result) -> None:
    result["privacy"]["sites"]["hospital-3"]["epsilon"] = 9.0201
    assert "epsilon ≤ 9.03" in answer(result)


@given(st.floats(1e-12, 1e6), st.integers(1, 4))
def test_rounding_never_flatters(value: float, digits: int) -> None:
    shown = float(round_up(value, digits))
    assert shown >= value
    assert shown <= max(value + 10.0**-digits, value * (1 + 10.0 ** (1 - digits))) * (1 + 1e-9)


def test_every_epsilon_table_and_figure_states_its_terms(result: Result) -> None:
    terms = (
        "delta 1e-5, patient level, zero-out adjacency, DP-SGD with Poisson sampling, "
        "PLD accountant, dp_accounting 0.6.0, all rounds together"
    )
    # Tile, figure, and the tables of rounds, hospitals, attacks and audiences.
    assert Outline(render(on_real_patients(result))).text.count(terms) == 6


def test_words_fit_the_finding(result: Result) -> None:
    page = render(grouped_pneumonia(result))
    text = Outline(page).text
    assert "malignant" not in text
    assert "benign" not in text
    assert "How well the model recognises “pneumonia”" in text
    assert "AUPRC, pneumonia" in text
    assert "AUPRC, not pneumonia" in text
    assert "Table of labels" not in page


def test_labels_are_shown_one_by_one_and_the_mean_says_of_what(result: Result) -> None:
    page = render(fourteen_findings(result))
    text = Outline(page).text
    test = result["final"]["test"]
    assert test["left_out"] == ["Hernia"]
    assert f"mean test AUROC over 13 findings {test['auroc']:.2f}" in answer(result)
    assert "Not in the mean: Hernia." in text
    assert "mean validation AUROC over the findings" in text
    for label in test["labels"]:
        counts = f"{label['name']} {label['num_positive']} of {label['num_images']} "
        figure = "not enough" if label["auroc"] is None else f"{label['auroc']:.3f}"
        assert f"{counts}{label['num_positive_patients']} {figure}" in text
    fewest = next(label for label in test["labels"] if 0 < label["num_positive_patients"] < 10)
    low, high = fewest["auroc_ci95"]
    assert f"{low:.3f} to {high:.3f} (few)" in text
    assert "The study names no groups of patients" in text
    classes = Outline(render(three_classes(result))).text
    assert "How well the model tells 3 classes apart" in classes
    assert "Each class against the rest" in classes


@pytest.mark.parametrize(
    "variant", [grouped_pneumonia, fourteen_findings_in_groups, three_classes_in_groups]
)
def test_groups_are_shown_with_what_cannot_be_measured(
    result: Result, variant: Callable[[Result], Result]
) -> None:
    text = Outline(render(variant(result))).text
    groups = result["final"]["test"]["groups"]
    assert [len(values) for values in groups.values()] == [2, 6]
    for row in (row for values in groups.values() for row in values):
        counts = f"{row['value']} {row['num_patients']} {row['num_images']} "
        if row["auroc"] is None:
            figure = "not enough"
        else:
            low, high = row["auroc_ci95"]
            figure = f"{row['auroc']:.3f} {low:.3f} to {high:.3f}"
        assert counts + figure in text
    assert "goes on and on 1 3 not enough" in text
    assert "measured without noise: no epsilon covers these figures" in text


def test_too_few_test_patients_are_said(result: Result) -> None:
    grouped_pneumonia(result)
    assert "Few patients." not in Outline(render(result)).text
    result["final"]["test"]["num_patients_of_class"] = 9
    assert (
        "There are not 10 test patients with it and 10 without it" in Outline(render(result)).text
    )


def test_intervals_share_a_scale_that_holds_them(result: Result) -> None:
    page = Page(fourteen_findings_in_groups(result))
    axis = interval_axis(page)
    assert axis is not None
    rows = [*page.labels, *(row for values in page.groups.values() for row in values)]
    ends = [end for row in rows for end in row["auroc_ci95"] or ()]
    assert len(ends) > 20
    assert axis.ticks[0] <= min(ends)
    assert axis.ticks[-1] >= max(ends)
    assert axis.left <= axis.x(min(ends)) < axis.x(max(ends)) <= axis.right


def test_a_result_of_the_first_days_still_has_a_page(result: Result) -> None:
    assert "task" not in result["study"]
    text = Outline(render(result)).text
    assert "AUPRC, malignant 0.793" in text
    assert "Group by group" not in text
    assert "names no groups" not in text


def test_image_level_is_not_sold_as_patient_level(result: Result) -> None:
    on_real_patients(result)["privacy"]["unit"] = "image"
    text = Outline(render(result)).text
    assert "Image level, not patient level." in text
    assert "image level, DP-SGD" in text
    assert "patient level," not in text.replace("not patient level.", "")


def test_a_refusal_and_its_reason_are_visible(result: Result) -> None:
    text = Outline(render(with_a_refusing_hospital(result))).text
    assert "hospital-2: 5 of 8, refused in the last." in text
    assert "hospital-2 200 refused 5 of 8 6.10 6.5 \u2013 one more round would have passed" in text
    assert "Hospitals in the last round 2 of 3" in text


def test_stopped_by_budget_is_said(result: Result) -> None:
    result |= {"state": "stopped-by-budget", "rounds": result["rounds"][:6]}
    assert "after 6 of 8 planned rounds, because one more" in Outline(render(result)).text


def test_a_failed_run_has_a_page(result: Result) -> None:
    text = Outline(render(failed_in_round_one(result))).text
    assert "Run failed" in text
    assert "The run failed and left no final model; no simulated hospital had trained" in text
    assert "It ended after 1 of 8 planned rounds" in text
    assert "There is no final test" in text
    assert "epsilon ≤ 2.90" in text
    text = Outline(render(not_even_started(result))).text
    assert "No hospital released anything" in text
    assert "No round was evaluated" in text


def test_strict_reviewers_list_is_answered(result: Result) -> None:
    text = Outline(render(on_real_patients(result))).text
    for words in (
        "For them there is no guarantee",
        "Tuning.",
        "Normalisation statistics.",
        "Training began from random weights",
        "pseudo-random, floating-point noise",
        "Seed 42 is printed below",
        "not about this seeded run",
        "true-positive rate at a false-positive rate",
        "at most 60.2 %",
        "at most 30.0 %",
        "at most e epsilon times as likely or as unlikely (here 2,900 times)",
        "an empty draw still adds noise and is charged",
    ):
        assert words in text, words
    result["config"]["model"] |= {"weights": "dino.safetensors", "weights_public": "ImageNet only"}
    text = Outline(render(result)).text
    assert "dino.safetensors, which count as public because: “ImageNet only”" in text


def test_threshold_calibration_and_fairness_are_shown(result: Result) -> None:
    page = render(with_probabilities(result))
    text = Outline(page).text
    test = result["final"]["test"]
    for name, words in (
        ("sensitivity", "Sensitivity"),
        ("specificity", "Specificity"),
        ("f1", "F1"),
        ("ece", "Calibration error (ECE)"),
    ):
        figure = test["figures"][name]
        low, high = figure["ci95"]
        assert f"{words} {figure['value']:.3f} {low:.3f} to {high:.3f}" in text
    assert "chosen on the validation images (Youden\u2019s index)" in text
    assert "a score from 0.6000 on is a yes" in text
    low, high = test["figures"]["auprc"]["ci95"]
    assert f"AUPRC, pneumonia {test['auprc_malignant']:.3f} {low:.3f} to {high:.3f}" in text
    curve = test["labels"][0]["reliability"]
    chart = reliability_chart(Page(result))
    assert chart is not None
    assert len(chart.lines[0].points) == len(curve) == 10
    assert {low for _, low, _ in chart.bars} == {
        point["observed"]["ci95"][0] for point in curve if point["observed"]["ci95"]
    }
    for column in ("sex", "age"):
        chosen = test["fairness"][column]["labels"][0]
        odds = chosen["gaps"]["equalised_odds"]
        told = "too few patients to say"
        if odds["value"] is not None:
            told = f"{odds['value']:.3f} ({odds['ci95'][0]:.3f} to {odds['ci95'][1]:.3f})"
        assert f"equalised odds {told}" in text
        assert f"Errors and calibration by {column}" in text
    assert test["fairness"]["age"]["labels"][0]["gaps"]["auroc"]["value"] is None
    assert ">=60 too few patients to say" in text


def test_a_run_without_a_threshold_has_no_such_panel(result: Result) -> None:
    text = Outline(render(on_real_patients(result))).text
    assert "Youden" not in text
    assert "Calibration" not in text


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("variant", [with_probabilities, fourteen_findings_in_groups])
def test_axe_finds_nothing_serious(
    axe: Callable[..., list[Result]],
    result: Result,
    variant: Callable[[Result], Result],
    tmp_path: Path,
    dark: bool,
) -> None:
    page = tmp_path / "report.html"
    write(variant(result), page)
    assert axe(page, dark=dark) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_page_is_whole_and_readable_without_eyes(
    result: Result, variant: Callable[[Result], Result]
) -> None:
    outline = Outline(render(variant(result)))
    assert outline.all("html") == [{"lang": "en"}]
    for landmark in ("header", "nav", "main", "footer", "h1", "title"):
        assert outline.count(landmark) >= 1, landmark
    assert outline.count("h1") == outline.count("main") == 1
    assert outline.count("table") == outline.count("caption")
    assert all(cell.get("scope") in {"col", "row"} for cell in outline.all("th"))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for figure in outline.all("svg"):
        if figure.get("aria-hidden") != "true":
            assert figure["role"] == "img"
            assert set((figure["aria-labelledby"] or "").split()) <= set(ids)
    for section in outline.all("section"):
        assert section["aria-labelledby"] in ids
    assert {link["href"] for link in outline.all("a")} <= {f"#{name}" for name in ids}
    assert outline.count("script") == 0
    assert not any("src" in attributes for _, attributes in outline.elements)


def plant(result: Result, text: str) -> Result:
    """``text`` wherever a site, a user or a study may have a say."""
    planted = with_a_refusing_hospital(fourteen_findings_in_groups(result))
    planted["study"]["task"]["names"][3] = text
    test = planted["final"]["test"]
    test["labels"][3]["name"] = test["left_out"][0] = text
    test["groups"] = {text: [row | {"value": text} for row in test["groups"]["age"]]}
    planted |= {"title": text, "created": text}
    planted["study"] |= {"name": text, "public": text}
    planted["versions"] = {text: text}
    planted["config"] = {text: {text: text}, "model": {"weights": text, "weights_public": text}}
    planted["privacy"] |= {"adjacency": text, "accountant_version": text, "sampler": text}
    planted["privacy"]["sites"][text] = planted["privacy"]["sites"].pop("hospital-2")
    for entry in planted["rounds"]:
        entry["sites"][text] = {"status": text, "epsilon": 1.0, "reason": text}
        del entry["sites"]["hospital-2"]
    return planted


def test_planted_markup_stays_text(result: Result) -> None:
    text = '<script>alert("1")</script><img src=x onerror=alert(1)>'
    outline = Outline(render(plant(result, text)))
    assert outline.count("script") == outline.count("img") == 0
    assert outline.text.count(text) > 10


@given(text=st.text(min_size=1, max_size=30).filter(str.strip))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_text_can_change_the_elements(result: Result, text: str) -> None:
    harmless = Outline(render(plant(copy.deepcopy(result), "harmless")))
    planted = Outline(render(plant(copy.deepcopy(result), text)))
    assert [tag for tag, _ in planted.elements if tag != "span"] == [
        tag for tag, _ in harmless.elements if tag != "span"
    ]


def test_an_unknown_schema_is_refused(result: Result) -> None:
    result["schema"] = "fedward.result/2"
    with pytest.raises(UsageError, match=r"fedward\.result/2"):
        render(result)


def test_write_replaces_whole_pages_only(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write(result, path)
    first = path.read_text(encoding="utf-8")
    assert first == render(result)
    with pytest.raises(UsageError):
        write({"schema": "other"}, path)
    assert path.read_text(encoding="utf-8") == first
    write(without_privacy(result), path)
    assert "NOT private" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@given(st.floats(1e-3, 1e5), st.integers(1, 120))
def test_axes_hold_what_they_show(epsilon: float, num_rounds: int) -> None:
    budget = epsilon * 1.01
    rounds = [
        {"round": number, "sites": {"a": {"status": "trained", "epsilon": epsilon}}}
        for number in range(1, num_rounds + 1)
    ]
    spent = {"a": {"epsilon": epsilon, "epsilon_budget": budget}}
    privacy = {"private": True, "epsilon_federation": epsilon, "sites": spent}
    (chart,) = charts(Page({"rounds": rounds, "privacy": privacy}))
    assert 3 <= len(chart.y_ticks) <= 10
    assert chart.y_ticks[0] == 0
    assert chart.y_ticks[-1] >= budget * 0.9999
    assert 1 <= len(chart.x_ticks) <= 10
    assert chart.x_ticks[-1][0] == num_rounds
    for line in chart.lines:
        for x, y in line.points:
            assert y is not None
            assert chart.left <= chart.x(x) <= chart.right
            assert chart.top - 0.1 <= chart.y(y) <= chart.bottom


def test_a_round_without_a_figure_interrupts_the_curve(result: Result) -> None:
    result["rounds"][3]["evaluation"] = None
    chart = charts(Page(result))[0]
    assert chart.path(chart.lines[0]).count("M") == 2


def test_the_browser_check_sees_planted_faults(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<!doctype html><img src="https://fedward.invalid/x.png">'
        "<script>console.error('planted')</script>"
    )
    met = browser(page)
    assert any("planted" in line for line in met.console)
    assert met.requests == ["https://fedward.invalid/x.png"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_page_opens_silently_in_a_browser(
    browser: Browser, result: Result, variant: Callable[[Result], Result], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    write(variant(result), page)
    met = browser(page)
    assert met.console == []
    assert met.requests == []
    assert "What is not covered" in met.dom


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_sticks_out_of_a_telephone(
    browser: Browser, result: Result, variant: Callable[[Result], Result], tmp_path: Path
) -> None:
    result = variant(result)
    result["title"] = "a_title_that_nobody_can_break_because_it_has_no_spaces_in_it_at_all"
    result["versions"] = {"a" * 80: "b" * 80}
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<!doctype html><iframe width="360" height="800" srcdoc="{html.escape(render(result))}" '
        'onload="const page = this.contentDocument.documentElement; document.title = '
        "'widths ' + page.clientWidth + ' ' + page.scrollWidth\"></iframe>",
        encoding="utf-8",
    )
    title = Outline(browser(frame).dom).text
    _, visible, needed = title[title.index("widths ") :].split()[:3]
    assert int(visible) > 300
    assert int(needed) <= int(visible)


def test_the_end_of_a_budget_a_hospitals_own_privacy_and_a_failure_are_told(result: Result) -> None:
    result["rounds"][-1]["sites"]["hospital-2"]["stops_after"] = 11
    result["privacy"]["site_level"] = {
        "epsilon": 3.141,
        "delta": 1e-5,
        "accountant": "pld",
        "unit": "site",
        "adjacency": "zero-out",
        "noise_multiplier": 4.0,
        "clip_norm": 0.5,
        "rounds": 8,
    }
    page = render(result)
    assert page.count("after round 11") == 1
    assert "epsilon ≤ 3.15" in page
    result |= {"state": "failed", "final": None, "ended": "round 9: <no> site"}
    assert "Why: round 9: &lt;no&gt; site." in render(result)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_told_in_words(result: Result, reason: Reason) -> None:
    last = result["rounds"][-1]["sites"]["hospital-2"]
    last |= {"status": "failed", "reason": reason.value}
    (row,) = [site for site in Page(result).sites if site.name == "hospital-2"]
    assert row.reason
    assert row.reason != reason.value

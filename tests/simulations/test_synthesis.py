"""Synthetic images, from the hospitals' generator to the classifier that uses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from client.synthesis.generator_file import read_generator
from common import provenance
from common.config import Job
from common.errors import UsageError
from common.privacy.accountants import build
from common.privacy.events import PoissonGaussianSteps

PHANTOMS = (
    "data.phantom.num_train_per_site=24",
    "data.phantom.num_val=16",
    "data.phantom.num_test=24",
    "data.phantom.size=32",
    "data.image_size=32",
    "model.architecture=test_vit",
    "model.patch_size=16",
    "federation.num_sites=2",
)
GAN = (
    *PHANTOMS,
    "federation.rounds=2",
    "federation.steps_per_round=2",
    "gan.width=0.03125",
    "gan.num_images=41",
    "privacy.epsilon=4",
)
CLASSIFIER = (*PHANTOMS, "federation.rounds=2", "federation.steps_per_round=2", "privacy.epsilon=8")
SITES = ("hospital-1", "hospital-2")


@pytest.fixture
def made(in_process: Any, tmp_path: Path) -> dict[str, Any]:
    """A generator trained with privacy; its ledgers are in ``tmp_path / "ledgers"``."""
    run = in_process(
        tmp_path / "gan",
        *GAN,
        f"simulation.ledger_dir={tmp_path / 'ledgers'}",
        "gan.assess=false",
        job=Job.synthesize,
    )
    return run[-1]["result"]


def test_images_and_their_bill(made: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "gan"
    assert made["state"] == "completed"
    rows = (folder / "images" / "metadata.csv").read_text().splitlines()
    assert rows[0] == "image,label"
    assert len(rows) == 42
    assert [row.rpartition(",")[2] for row in rows[1:5]] == ["0", "1", "0", "1"]
    with Image.open(folder / "images" / rows[41].partition(",")[0]) as picture:
        assert (picture.size, picture.mode) == ((32, 32), "L")
    with Image.open(folder / "grid.png") as grid:
        assert grid.size[0] > 100

    bill = provenance.read_file(folder / "images" / "provenance.json")
    assert bill.kind is provenance.Kind.private
    privacy = made["privacy"]
    steps = PoissonGaussianSteps(
        sampling_rate=privacy["sampling_rate"],
        noise_multiplier=privacy["noise_multiplier"],
        steps=4,
    )
    assert bill.epsilon == pytest.approx(build("pld").epsilon([steps], privacy["delta"]))
    assert 3.9 < bill.epsilon <= 4
    for charge, site in zip(bill.charges, SITES, strict=True):
        assert (charge.site, charge.events, charge.num_patients) == (site, (steps,), 24)
        assert charge.requests == ("gan/1/train", "gan/2/train")
        assert privacy["sites"][site]["epsilon"] == pytest.approx(charge.epsilon)
    kept = read_generator(folder / "generator.safetensors")
    assert kept.provenance.charges == bill.charges
    assert kept.words == ("0", "1")


def test_going_on_draws_the_same_images_and_charges_nobody(
    made: dict[str, Any], in_process: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "gan"
    before = provenance.read_file(folder / "images" / "provenance.json")
    shutil.rmtree(folder / "work")
    ledgers = f"simulation.ledger_dir={tmp_path / 'ledgers'}"
    again = in_process(folder, *GAN, ledgers, "gan.assess=false", job=Job.synthesize)
    assert provenance.read_file(folder / "images" / "provenance.json") == before
    assert again[-1]["result"]["privacy"] == made["privacy"]


def test_a_generator_of_each_hospital(in_process: Any, tmp_path: Path) -> None:
    run = in_process(tmp_path / "gan", *GAN, "gan.sharing=pool", job=Job.synthesize)
    result = run[-1]["result"]
    assert len(result["rounds"]) == 4
    assert [sorted(record["sites"]) for record in result["rounds"]] == (
        [["hospital-1"]] * 2 + [["hospital-2"]] * 2
    )
    bill = provenance.read_file(tmp_path / "gan" / "images" / "provenance.json")
    assert [charge.requests[0] for charge in bill.charges] == (
        ["gan/hospital-1/1/train", "gan/hospital-2/1/train"]
    )
    one, other = (
        read_generator(tmp_path / "gan" / f"generator-{site}.safetensors") for site in SITES
    )
    assert any(
        not torch.equal(weight, other.generator.state_dict()[name])
        for name, weight in one.generator.state_dict().items()
    )
    figures = json.loads((tmp_path / "gan" / "quality.json").read_text())
    assert figures["num_synthetic_images"] == 41
    assert figures["num_train_images"] >= 48


@pytest.mark.parametrize(
    ("mode", "more"),
    [("mix", ()), ("mix", ("augment.counted_as_patients=true",)), ("pretrain_then_dp_head", ())],
)
def test_the_classifier_gets_what_is_left(
    mode: str, more: tuple[str, ...], made: dict[str, Any], in_process: Any, tmp_path: Path
) -> None:
    run = in_process(
        tmp_path / "run",
        *CLASSIFIER,
        f"augment={mode}",
        "augment.epochs=1",
        f"augment.pool={tmp_path / 'gan' / 'images'}",
        f"simulation.ledger_dir={tmp_path / 'ledgers'}",
        *more,
    )
    result = run[-1]["result"]
    assert result["state"] == "completed"
    privacy = result["privacy"]
    for site in SITES:
        spend = privacy["sites"][site]
        assert made["privacy"]["sites"][site]["epsilon"] < spend["epsilon"] <= 8
        assert spend["epsilon"] > 7.9
        assert spend["epsilon_this_run"] < 7.5, "the generator's part was given away twice"
    synthetic = result["synthetic"]
    assert synthetic["num_images"] == 41
    assert synthetic["provenance"]["epsilon"] == pytest.approx(
        max(made["privacy"]["sites"][site]["epsilon"] for site in SITES)
    )
    assert "synthetic" in (tmp_path / "run" / "report.html").read_text()
    counted = "augment.counted_as_patients=true" in more
    rate = 0.25 * 48 / (48 + 2 * 41) if counted else 0.25
    assert privacy["sampling_rate"] == pytest.approx(rate)


def test_ledgers_that_know_nothing_of_the_generator_refuse(
    made: dict[str, Any], in_process: Any, tmp_path: Path
) -> None:
    del made
    pool = ("augment=mix", f"augment.pool={tmp_path / 'gan' / 'images'}")
    with pytest.raises(UsageError, match=r"simulation\.ledger_dir"):
        in_process(tmp_path / "run", *CLASSIFIER, *pool)
    with pytest.raises(UsageError, match="does not hold what it is said to have paid"):
        in_process(
            tmp_path / "other", *CLASSIFIER, *pool, f"simulation.ledger_dir={tmp_path / 'new'}"
        )
    three = ("federation.num_sites=3", f"simulation.ledger_dir={tmp_path / 'newer'}")
    bill = tmp_path / "gan" / "images" / "provenance.json"
    bill.write_text(bill.read_text().replace('"hospital-', '"clinic-'))
    with pytest.raises(UsageError, match="does not say what its patients paid"):
        in_process(tmp_path / "renamed", *CLASSIFIER, *pool, *three)


def test_without_privacy_there_is_no_epsilon_left(in_process: Any, tmp_path: Path) -> None:
    leaky = ("gan.private=false", "gan.assess=false", "data.public=null")
    in_process(tmp_path / "gan", *GAN, *leaky, job=Job.synthesize)
    folder = tmp_path / "gan" / "images"
    assert provenance.read_file(folder / "provenance.json").kind is provenance.Kind.not_private
    pool = ("augment=mix", f"augment.pool={folder}")
    with pytest.raises(UsageError, match="epsilon is infinite and hospital-1 refuses"):
        in_process(tmp_path / "capped", *CLASSIFIER, *pool)
    result = in_process(tmp_path / "run", *CLASSIFIER, *pool, "privacy.budget=inf")[-1]["result"]
    privacy = result["privacy"]
    assert privacy["private"] is False
    assert privacy["epsilon_federation"] is None
    assert all(site["epsilon"] is None for site in privacy["sites"].values())
    claimed = result["synthetic"]["epsilon_claimed_without_them"]
    assert 7.9 < claimed <= 8
    page = (tmp_path / "run" / "report.html").read_text()
    assert "infinite" in page
    assert "trained without differential privacy" in page


def test_pretraining_alone_asks_no_hospital_and_costs_what_the_images_cost(
    made: dict[str, Any], in_process: Any, tmp_path: Path
) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("a hospital was asked")

    result = in_process(
        tmp_path / "run",
        *CLASSIFIER,
        "augment=pretrain",
        "augment.epochs=2",
        f"augment.pool={tmp_path / 'gan' / 'images'}",
        f"simulation.ledger_dir={tmp_path / 'ledgers'}",
        federate=never,
    )[-1]["result"]
    assert result["rounds"] == []
    for site in SITES:
        spend = result["privacy"]["sites"][site]
        assert spend["epsilon"] == made["privacy"]["sites"][site]["epsilon"]
        assert spend["epsilon_this_run"] == 0.0


def test_weights_bring_their_bill(made: dict[str, Any], in_process: Any, tmp_path: Path) -> None:
    ledgers = f"simulation.ledger_dir={tmp_path / 'ledgers'}"
    pool = f"augment.pool={tmp_path / 'gan' / 'images'}"
    head = ("finetune=head", "augment.layers=head", "augment.epochs=1")
    in_process(tmp_path / "first", *CLASSIFIER, ledgers, pool, "augment=pretrain", *head)
    start = tmp_path / "first" / "start.safetensors"
    bill = provenance.read_weights_file(start)
    assert bill.epsilon == pytest.approx(made["privacy"]["epsilon_federation"])

    begun = (*CLASSIFIER, "finetune=head", f"model.start={start}")
    result = in_process(tmp_path / "second", *begun, ledgers)[-1]["result"]
    for site in SITES:
        spend = result["privacy"]["sites"][site]
        assert 7.9 < spend["epsilon"] <= 8
        assert spend["epsilon_this_run"] < 7.5
    final = provenance.read_weights_file(tmp_path / "second" / "weights.safetensors")
    assert 7.9 < final.epsilon <= 8, "the generator's part is left out"
    assert result["provenance"] == final.to_dict()
    assert "an earlier run left" in (tmp_path / "second" / "report.html").read_text()
    with pytest.raises(UsageError, match=r"initial weights: .*simulation\.ledger_dir"):
        in_process(tmp_path / "third", *begun)


def test_leaky_weights_leave_no_epsilon(in_process: Any, tmp_path: Path) -> None:
    one = (*CLASSIFIER, "finetune=head", "data.public=null")
    in_process(tmp_path / "open", *one, "privacy=none", "privacy.epsilon=null")
    weights = tmp_path / "open" / "weights.safetensors"
    assert provenance.read_weights_file(weights).kind is provenance.Kind.not_private
    with pytest.raises(UsageError, match=r"initial weights: .*epsilon is infinite"):
        in_process(tmp_path / "capped", *one, f"model.start={weights}")
    result = in_process(tmp_path / "run", *one, f"model.start={weights}", "privacy.budget=inf")[-1][
        "result"
    ]
    assert result["privacy"]["private"] is False
    assert all(site["epsilon"] is None for site in result["privacy"]["sites"].values())
    assert (
        "Initial weights trained without privacy" in (tmp_path / "run" / "report.html").read_text()
    )


def test_weights_that_a_run_trained_need_their_provenance(in_process: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file({"head.linear.bias": torch.zeros(2)}, bare)
    with pytest.raises(UsageError, match="no provenance in it"):
        in_process(tmp_path / "run", *CLASSIFIER, "finetune=head", f"model.start={bare}")
    with pytest.raises(UsageError, match="not a safetensors file"):
        in_process(tmp_path / "none", *CLASSIFIER, f"model.start={tmp_path / 'absent'}")


def test_public_images_cost_nothing(in_process: Any, made: dict[str, Any], tmp_path: Path) -> None:
    del made
    folder = tmp_path / "public"
    shutil.copytree(tmp_path / "gan" / "images", folder)
    (folder / "provenance.json").write_text(
        json.dumps({"schema": provenance.SCHEMA, "kind": "public", "reason": "drawn by a program"})
    )
    result = in_process(tmp_path / "run", *CLASSIFIER, "augment=mix", f"augment.pool={folder}")
    privacy = result[-1]["result"]["privacy"]
    assert 7.9 < privacy["epsilon_federation"] <= 8
    assert privacy["sites"]["hospital-1"]["epsilon_this_run"] == privacy["epsilon_federation"]


def test_moments_are_released_once(in_process: Any, tmp_path: Path) -> None:
    run = in_process(
        tmp_path / "moments",
        *PHANTOMS,
        "gan=moments",
        "gan.num_images=40",
        "privacy.epsilon=2",
        job=Job.synthesize,
    )
    result = run[-1]["result"]
    bill = provenance.read_file(tmp_path / "moments" / "images" / "provenance.json")
    steps = PoissonGaussianSteps(
        sampling_rate=1.0, noise_multiplier=result["privacy"]["noise_multiplier"], steps=1
    )
    assert [charge.events for charge in bill.charges] == [(steps,), (steps,)]
    assert 1.95 < bill.epsilon <= 2
    assert read_generator(tmp_path / "moments" / "generator.safetensors").words == ("0", "1")
    with pytest.raises(UsageError, match="is released once"):
        in_process(
            tmp_path / "twice", *PHANTOMS, "gan=moments", "federation.rounds=2", job=Job.synthesize
        )

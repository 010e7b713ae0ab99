"""One trial: whole or not at all, with ledgers of its own, and a beginning that others share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import provenance
from common.errors import UsageError
from simulations import sites
from simulations.comparison.folder import Folder
from simulations.comparison.plan import Plan, plan
from simulations.comparison.request import parse
from simulations.comparison.summary import compare
from simulations.comparison.trial import Job, run_trial


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Public synthetic images: bright ones have the finding."""
    folder = tmp_path / "pool"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image,label"]
    for number in range(12):
        pixels = rng.integers(0, 100, (32, 32)) + 100 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{number % 2}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    facts = {"schema": provenance.SCHEMA, "kind": "public", "reason": "drawn by a program"}
    (folder / "provenance.json").write_text(json.dumps(facts))
    return folder


def planned(tmp_path: Path, *words: str) -> tuple[Plan, Folder]:
    asked = parse([f"out={tmp_path / 'out'}", "seeds=1", "epsilons=inf", *words])
    folder = Folder(path=asked.out)
    return plan(asked, folder), folder


def jobs(found: Plan, folder: Folder) -> list[Job]:
    return [Job(name=t.name, start=t.start, folder=folder, config=t.config) for t in found.trials]


def result_of(job: Job) -> dict[str, object]:
    return json.loads(job.folder.finished(job.name).result.read_text())


def test_trials_with_the_same_beginning_pretrain_once(
    tmp_path: Path, tiny: tuple[str, ...], pool: Path
) -> None:
    words = ("augments=pretrain_then_dp_head", f"augment.pool={pool}", "augment.epochs=2")
    found, folder = planned(tmp_path, *tiny, *words, "arms=centralized,federated")
    first, second = jobs(found, folder)
    assert first.start == second.start is not None
    run_trial(first)
    start = folder.start(str(first.start))
    made = start.read_bytes()
    run_trial(second)
    assert start.read_bytes() == made
    # The second began where the first did: it takes what lies there, whatever it is.
    start.write_bytes(b"not a file of weights")
    with pytest.raises(UsageError, match="not a safetensors file"):
        run_trial(second)


def test_a_shared_beginning_changes_nothing(
    tmp_path: Path, tiny: tuple[str, ...], pool: Path
) -> None:
    words = ("augments=pretrain_then_dp_head", f"augment.pool={pool}", "augment.epochs=2")
    found, folder = planned(tmp_path, *tiny, *words, "arms=federated,centralized")
    federated, centralized = jobs(found, folder)
    run_trial(centralized)
    run_trial(federated)
    alone = Job(
        name=federated.name,
        start=federated.start,
        folder=Folder(path=tmp_path / "alone"),
        config=federated.config,
    )
    run_trial(alone)
    shared, own = (result_of(job)["final"]["weights_sha256"] for job in (federated, alone))  # type: ignore[index]
    assert shared == own


def test_each_trial_starts_from_the_ledgers_as_they_were(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    words = ("arms=federated", "epsilons=4,8", f"simulation.ledger_dir={tmp_path / 'books'}")
    found, folder = planned(tmp_path, *tiny, *words)
    (tmp_path / "books").mkdir()
    for job in jobs(found, folder):
        run_trial(job)
    assert list((tmp_path / "books").iterdir()) == [], "a trial wrote into the hospitals' ledgers"
    spent = [result_of(job)["privacy"]["epsilon_federation"] for job in jobs(found, folder)]  # type: ignore[index]
    assert 0.95 * 4 < spent[0] <= 4
    assert 0.95 * 8 < spent[1] <= 8


def test_a_failed_trial_leaves_nothing(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    found, folder = planned(tmp_path, *tiny, "model.architecture=vit_nowhere", "data.image_size=32")
    job = jobs(found, folder)[0]
    with pytest.raises(UsageError, match="vit_nowhere"):
        run_trial(job)
    assert not folder.finished(job.name).path.exists()
    assert list(folder.work.iterdir()) == []


def test_a_finished_trial_leaves_no_site_open(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    found, folder = planned(tmp_path, *tiny, "arms=federated")
    (job,) = jobs(found, folder)
    before = set(sites._open_sites)
    run_trial(job)
    assert set(sites._open_sites) == before


def test_leftovers_of_a_kill_do_not_matter(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    found, folder = planned(tmp_path, *tiny, "arms=federated")
    (job,) = jobs(found, folder)
    left = folder.unfinished(job.name)
    left.cohort("hospital-1").mkdir(parents=True)
    (left.path / "start.safetensors").write_bytes(b"half")
    half = folder.finished(job.name)
    half.path.mkdir(parents=True)
    (half.path / "report.html").write_text("no result beside it")
    run_trial(job)
    assert result_of(job)["state"] == "completed"
    assert "no result beside it" not in half.report.read_text()


def test_a_leaking_pool_shows_both_epsilons(
    tmp_path: Path, tiny: tuple[str, ...], pool: Path
) -> None:
    facts = {"schema": provenance.SCHEMA, "kind": "not_private", "reason": "a GAN without noise"}
    (pool / "provenance.json").write_text(json.dumps(facts))
    words = ("arms=federated", "epsilons=8", "augments=none,mix", f"augment.pool={pool}")
    capped, _ = planned(tmp_path / "capped", *tiny, *words)
    folder = Folder(path=tmp_path / "capped" / "out")
    with pytest.raises(UsageError, match="epsilon is infinite"):
        run_trial(jobs(capped, folder)[1])

    found, folder = planned(tmp_path, *tiny, *words, "privacy.budget=inf")
    for job in jobs(found, folder):
        run_trial(job)
    asked = parse([f"out={folder.path}", "seeds=1", "epsilons=8", *tiny, *words])
    comparison = compare(asked, found, folder, {})
    plain, leaking = (cell["privacy"] for cell in comparison["cells"])
    assert plain["private"] is True
    assert plain["epsilon"] == plain["epsilon_claimed"] > 7.5
    assert leaking["private"] is False
    assert leaking["epsilon"] is None
    assert 7.5 < leaking["epsilon_claimed"] <= 8
    (remark,) = comparison["equal"]["remarks"]
    assert remark.startswith("augment=mix: something that was made without privacy")
    assert [one["about"] for one in comparison["differences"]] == ["synthetic"]

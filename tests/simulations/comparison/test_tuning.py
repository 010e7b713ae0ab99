"""Settings are chosen before the comparison: on whom, from what, and at whose cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from common.config import TunedOn
from common.errors import FedwardError, UsageError
from common.privacy import accountants
from common.privacy.events import PoissonGaussianSteps
from simulations.comparison.curves import exceeds
from simulations.comparison.folder import Folder
from simulations.comparison.page import ComparisonPage, render
from simulations.comparison.plan import Plan, plan
from simulations.comparison.request import Request, parse
from simulations.comparison.summary import compare
from simulations.comparison.trial import Job, run_trial
from simulations.comparison.tuning import SearchPlan, Tuning
from simulations.run_dir import RunDir

CANDIDATES = "tune.training.learning_rate=0.003,0.03"


def _run(trials: Any, folder: Folder) -> None:
    for trial in trials:
        if not folder.finished(trial.name).result.is_file():
            run_trial(Job(name=trial.name, start=trial.start, folder=folder, config=trial.config))


def _done(out: Path, *words: str) -> tuple[Request, Plan, Folder, Tuning]:
    asked = parse([f"out={out}", *words])
    folder = Folder(path=out)
    assert asked.search is not None
    searched = SearchPlan.of(asked, asked.search, folder)
    _run(searched.trials.values(), folder)
    tuning = searched.choose(folder, {})
    planned = plan(asked, folder, tuning.chosen)
    _run(planned.trials, folder)
    return asked, planned, folder, tuning


@pytest.fixture(scope="module")
def private(
    tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]
) -> tuple[Request, Plan, Folder, Tuning]:
    """Chosen on the compared patients."""
    out = tmp_path_factory.mktemp("tuning") / "out"
    return _done(out, *tiny, "arms=federated", "seeds=1,2", "tune_on=private", CANDIDATES)


def test_the_best_on_validation_patients_is_taken_at_each_epsilon(
    private: tuple[Request, Plan, Folder, Tuning],
) -> None:
    _, planned, folder, tuning = private
    assert {choice.epsilon for choice in tuning.choices} == {8.0, math.inf}
    for choice in tuning.choices:
        reached: dict[tuple[str, ...], float] = {}
        for candidate in choice.candidates:
            (trial,) = candidate.trials
            rounds = json.loads(folder.finished(trial.name).result.read_text())["rounds"]
            assert candidate.auroc == rounds[-1]["evaluation"]["auroc"]
            assert trial.config.privacy.tuned_on is None
            reached[candidate.words] = candidate.auroc
        assert len(set(reached.values())) == 2  # else nothing is chosen here
        assert reached[choice.taken.words] == max(reached.values())
        (rate,) = {
            trial.config.training.learning_rate
            for trial in planned.trials
            if trial.cell.epsilon == choice.epsilon
        }
        assert choice.taken.words == (f"training.learning_rate={rate:g}",)


def test_a_search_on_the_compared_patients_is_in_their_epsilon(
    private: tuple[Request, Plan, Folder, Tuning],
) -> None:
    asked, planned, folder, tuning = private
    found = compare(asked, planned, folder, {}, tuning)
    cells = {cell["epsilon"]: cell for cell in found["cells"]}
    assert cells[None]["privacy"]["epsilon"] is None
    privacy = cells[8.0]["privacy"]
    facts = json.loads(folder.finished(planned.trials[0].name).result.read_text())["privacy"]
    one = PoissonGaussianSteps(
        sampling_rate=facts["sampling_rate"],
        noise_multiplier=facts["noise_multiplier"],
        steps=facts["steps_per_round"] * facts["rounds_planned"],
    )
    accountant = accountants.build(facts["accountant"])
    assert privacy["epsilon"] == pytest.approx(accountant.epsilon([one] * 3, facts["delta"]))
    assert privacy["epsilon"] > privacy["epsilon_claimed"] == pytest.approx(8, rel=0.01)
    assert privacy["epsilon_alone"] == privacy["epsilon"]
    assert exceeds(cells[8.0])
    assert not exceeds(cells[None])


def test_the_page_and_every_run_say_that_private_data_chose(
    private: tuple[Request, Plan, Folder, Tuning],
) -> None:
    asked, planned, folder, tuning = private
    found = json.loads(json.dumps(compare(asked, planned, folder, {}, tuning)))
    assert found["tuning"]["on"] == "private"
    assert "on the compared patients themselves" in found["equal"]["tuning"]
    page = render(ComparisonPage.of(found))
    assert "Epsilon is claimed only: federated." in page
    assert "<strong>Tuning is charged.</strong>" in page
    for trial in planned.trials:
        assert trial.config.privacy.tuned_on is TunedOn.private
        run_dir = folder.finished(trial.name)
        assert json.loads(run_dir.result.read_text())["config"]["privacy"]["tuned_on"] == "private"
        assert "Tuned on private data, and not charged" in run_dir.report.read_text()


def test_a_public_study_chooses_and_costs_the_compared_patients_nothing(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    elsewhere = "tune_on=data=phantom data.phantom.seed=99"
    asked, planned, folder, tuning = _done(
        tmp_path / "out", *tiny, "arms=federated,local", "epsilons=8", elsewhere, CANDIDATES
    )
    found = json.loads(json.dumps(compare(asked, planned, folder, {}, tuning)))
    assert tuning.study.data.phantom.seed == 99 != planned.config.data.phantom.seed
    assert found["tuning"]["public"] == "generated phantoms, nobody's images"
    for cell in found["cells"]:
        assert cell["privacy"]["epsilon"] == cell["privacy"]["epsilon_claimed"]
        assert not exceeds(cell)
    local = next(one for one in tuning.choices if one.arm == "local")
    hospitals = [len(one.trials) for one in local.candidates]
    assert hospitals == [tuning.study.federation.num_sites] * 2
    # All that is not the study's is as it was asked for.
    for trial in tuning.choices[0].candidates[0].trials:
        config, compared = trial.config, planned.trials[0].config
        assert config.model == compared.model
        assert config.federation == compared.federation
        assert config.data.image_size == compared.data.image_size


def test_a_study_that_nothing_calls_public_cannot_choose_for_free(
    tmp_path: Path, tiny: tuple[str, ...], table_study: Path
) -> None:
    on = f"tune_on=data=table data.root={table_study}"
    asked = parse([f"out={tmp_path / 'out'}", *tiny, on, CANDIDATES])
    assert asked.search is not None
    with pytest.raises(UsageError, match=r"nothing says that .* is public"):
        SearchPlan.of(asked, asked.search, Folder(path=asked.out))


def test_a_search_with_a_hole_chooses_nothing(
    private: tuple[Request, Plan, Folder, Tuning], tmp_path: Path
) -> None:
    asked, _, _, tuning = private
    empty = Folder(path=tmp_path)
    name = next(iter(SearchPlan.of(asked, tuning.search, empty).trials))
    with pytest.raises(FedwardError, match=r"not whole: .* has no result \(out of memory\)"):
        SearchPlan.of(asked, tuning.search, empty).choose(empty, {name: "out of memory"})
    assert not RunDir(path=empty.trials).path.exists()

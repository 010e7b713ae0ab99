"""A run whose rounds ask some of the hospitals: who trains, who is charged, what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import configs
from common.config import Unit
from common.privacy.events import PoissonGaussianSteps
from server.schedule import Schedule
from simulations.report.page import Page
from simulations.run_dir import RunDir
from simulations.sites import SimulatedSites

SITES = tuple(f"hospital-{number}" for number in range(1, 5))
SMALL = (
    "model=test_vit",
    "model.patch_size=32",
    "data.phantom.num_train_per_site=24",
    "data.phantom.num_val=12",
    "data.phantom.num_test=24",
    "federation.num_sites=4",
    "federation.sites_per_round=2",
    "federation.rounds=4",
    "federation.steps_per_round=2",
    "privacy.images_per_patient=1",
    "privacy.epsilon=4",
    "seed=11",
)


def charged(path: Path, name: str) -> list[PoissonGaussianSteps]:
    config = configs.read_yaml(RunDir(path=path).config)
    sites = SimulatedSites(config=config, run_dir=RunDir(path=path), names=SITES, num_classes=2)
    with sites.setup(name).open_ledger(Unit.patient) as ledger:
        return list(ledger.events())


@pytest.mark.parametrize("strategy", [(), ("strategy=scaffold", "training.optimizer=sgd")])
def test_hospitals_are_charged_for_the_rounds_that_asked_them(
    in_process: Any, tmp_path: Path, strategy: tuple[str, ...]
) -> None:
    path = tmp_path / "run"
    events = in_process(path, *SMALL, *strategy)
    run_dir, result = RunDir(path=path), events[-1]["result"]
    config = configs.load([*SMALL, *strategy])
    run_dir.config.write_text(configs.dump_yaml(config))
    schedule = Schedule.of(config)
    planned = {name: schedule.rounds_of(name, SITES) for name in SITES}
    assert len(set(map(len, planned.values()))) > 1, "every hospital as often: choose another seed"
    assert result["state"] == "completed"
    privacy = result["privacy"]
    assert privacy["sites_per_round"] == 2
    assert privacy["most_rounds_of_a_site"] == max(map(len, planned.values())) < 4
    for name, rounds in planned.items():
        assert sum(event.steps for event in charged(path, name)) == 2 * len(rounds)
        held = [record for record in result["rounds"] if name in record["sites"]]
        assert [record["round"] for record in held] == rounds
        spent = privacy["sites"][name]["epsilon"]
        assert spent <= 4
        assert (spent > 3.9) is (len(rounds) == privacy["most_rounds_of_a_site"])
        if rounds:
            assert held[-1]["sites"][name]["epsilon"] == pytest.approx(spent, rel=0.01)
    page = Page(result)
    assert {site.name: (site.rounds_trained, site.rounds_asked) for site in page.sites} == {
        name: (len(rounds), len(rounds)) for name, rounds in planned.items()
    }
    assert page.incomplete == []
    assert page.num_in_last_round == 2

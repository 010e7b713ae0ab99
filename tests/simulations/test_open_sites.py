"""Of many hospitals a process keeps few open; which ones changes nothing but time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import configs
from common.config import SimulationConfig
from common.errors import UsageError
from simulations import sites as sites_module
from simulations.run_dir import RunDir

SMALL = (
    "model=test_vit",
    "model.patch_size=32",
    "data.phantom.num_train_per_site=16",
    "data.phantom.num_val=12",
    "data.phantom.num_test=24",
    "federation.num_sites=4",
    "federation.rounds=2",
    "federation.steps_per_round=1",
    "privacy.images_per_patient=1",
    "privacy.epsilon=4",
)
SECURE = ("federation.trust=secure_aggregation", "training.optimizer=sgd")


def run(in_process: Any, path: Path, *overrides: str) -> tuple[Any, list[int]]:
    """The result, and how many hospitals were open whenever one had answered."""
    numbers: list[int] = []

    def count(event: dict[str, Any]) -> None:
        if event["event"] == "site":
            numbers.append(sum(key[0] == str(path) for key in sites_module._open_sites))

    events = in_process(path, *SMALL, *overrides, observe=count)
    sites_module.close_sites(RunDir(path=path))
    return events[-1]["result"], numbers


@pytest.mark.parametrize(
    "job",
    [(), ("finetune=head",), ("strategy=scaffold", "training.optimizer=sgd"), SECURE],
    ids=["all", "head", "scaffold", "secure"],
)
def test_closing_changes_no_bit_and_no_spend(
    in_process: Any, tmp_path: Path, job: tuple[str, ...]
) -> None:
    open_, all_open = run(in_process, tmp_path / "open", *job)
    closed, few = run(in_process, tmp_path / "closed", *job, "simulation.open_sites=1")
    assert max(all_open) == 4
    assert set(few) == {1}
    assert closed["final"]["weights_sha256"] == open_["final"]["weights_sha256"]
    spent = [result["privacy"]["epsilon_federation"] for result in (open_, closed)]
    assert spent[0] == spent[1] > 0


def test_the_ones_asked_last_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites_module, "_open_sites", {})
    monkeypatch.setattr(sites_module.SimulatedSites, "setup", lambda self, name: name)
    monkeypatch.setattr(sites_module.SimulatedSites, "_open", lambda self, site, name: site)
    monkeypatch.setattr("client.site.Site", lambda name: object())
    sites = sites_module.SimulatedSites(
        config=configs.load(["simulation.open_sites=2"]),
        run_dir=RunDir(path=tmp_path),
        names=("a", "b", "c"),
        num_classes=2,
    )

    def ask(name: str) -> Any:
        place = sites.names.index(name)
        context: Any = SimpleNamespace(node_config={"partition-id": place})
        return sites(context)

    first = {name: ask(name) for name in ("a", "b")}
    assert ask("a") is first["a"]
    ask("c")  # b was asked longest ago
    assert ask("a") is first["a"]
    assert ask("b") is not first["b"]
    assert [name for _, name in sites_module._open_sites] == ["a", "b"]


def test_at_least_one_is_open() -> None:
    with pytest.raises(UsageError, match=r"simulation\.open_sites=0"):
        SimulationConfig(open_sites=0)

"""Finished runs that nobody planned together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import configs
from common.config import Config, FederationConfig, Mechanism, ModelConfig, PrivacyConfig
from common.errors import UsageError
from simulations.comparison.measured import Measured
from simulations.comparison.merge import merge

Leave = Callable[..., Path]


@pytest.fixture
def leave(make_measured: Callable[..., Measured], tmp_path: Path) -> Leave:
    """Leaves a run's folder with files that a finished run leaves."""

    def run(
        name: str,
        *,
        epsilon: float = math.inf,
        seed: int = 1,
        site: str | None = None,
        num_sites: int = 2,
        shift: float = 1.0,
        model: str = "vit_tiny",
        cases: str = "c",
        **privacy: Any,
    ) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        private = math.isfinite(epsilon)
        measured = make_measured(epsilon=epsilon, seed=seed, shift=shift, cases=cases, **privacy)
        sites = {
            number: {"num_patients": 4, "epsilon_this_run": None} for number in "ab"[:num_sites]
        }
        stated: dict[str, Any] = {
            "sites": sites,
            "mechanism": "dp_sgd" if private else "none",
            "epsilon_target": epsilon if private else None,
        }
        result = measured.result | {
            "schema": "fedward.result/1",
            "study": {
                "task": {"kind": "binary", "names": ["malignant"]},
                "num_train_images": 9,
            },
            "privacy": measured.result["privacy"] | stated | privacy,
        }
        result["final"] = result["final"] | {"weights_sha256": name.replace("/", "") * 20}
        config = Config(
            seed=seed,
            privacy=PrivacyConfig(
                mechanism=Mechanism.dp_sgd if private else Mechanism.none,
                epsilon=epsilon if private else 8.0,
            ),
            federation=FederationConfig(num_sites=num_sites, sites=[site] if site else []),
            model=ModelConfig(name=model),
        )
        (path / "result.json").write_text(json.dumps(result))
        (path / "config.yaml").write_text(configs.dump_yaml(config))
        measured.predictions.write(path / "predictions.csv", public=True)
        return path

    return run


def test_arms_epsilons_seeds_and_hospitals_are_told_apart(leave: Leave, tmp_path: Path) -> None:
    paths = [
        *(leave(f"f{seed}", seed=seed, shift=1.2) for seed in (1, 2)),
        *(leave(f"p{seed}", seed=seed, epsilon=8.0, shift=0.8) for seed in (1, 2)),
        *(leave(f"c{seed}", seed=seed, num_sites=1, shift=1.5) for seed in (1, 2)),
        *(leave(f"l{seed}", seed=seed, site="b", shift=0.5) for seed in (1, 2)),
        *(leave(f"v{seed}", seed=seed, model="resnet", shift=1.1) for seed in (1, 2)),
    ]
    told = json.loads(json.dumps(merge(paths, tmp_path / "out"), allow_nan=False))
    assert [(cell["arm"], cell["epsilon"], cell["seeds"]) for cell in told["cells"]] == [
        ("centralized", None, [1, 2]),
        ("federated", 8.0, [1, 2]),
        ("federated", None, [1, 2]),
        ("federated model.name=resnet", None, [1, 2]),
        ("local", None, [1, 2]),
    ]
    assert {(one["about"], one["a"]["arm"], one["b"]["arm"]) for one in told["differences"]} == {
        ("federation", "federated", "centralized"),
        ("alone", "local", "federated"),
        ("privacy", "federated", "federated"),
        ("setting", "federated model.name=resnet", "federated"),
        ("federation", "federated model.name=resnet", "centralized"),
    }
    assert told["trials"][0]["folder"] == "../c1"
    assert "local epsilon inf: the mean is over 1 of 2 hospitals." in told["equal"]["remarks"]
    assert "name" not in told["config"]["model"]
    assert told["config"]["federation"]["rounds"]
    assert told["missing"] == []


def test_the_trials_of_a_comparison_are_runs(leave: Leave, tmp_path: Path) -> None:
    for name in ("one", "two"):
        leave(f"done/trials/{name}", seed=len(name) if name == "one" else 4)
    told = merge([tmp_path / "done"], tmp_path / "out")
    assert [cell["seeds"] for cell in told["cells"]] == [[3, 4]]
    assert [one["folder"] for one in told["trials"]] == ["../done/trials/one", "../done/trials/two"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cases": "other"}, "were tested on different test sets (other patients"),
        ({"unit": "image"}, "has unit patient and"),
        ({"delta": 1e-6}, "has delta 1e-05 and"),
        ({"accountant": "rdp"}, "has accountant pld and"),
    ],
)
def test_runs_that_mean_other_things_are_refused_by_name(
    leave: Leave, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    paths = [leave("one"), leave("two", seed=2), leave("three", seed=3, **change)]
    with pytest.raises(UsageError) as refused:
        merge(paths, tmp_path / "out")
    text = str(refused.value)
    assert words in text
    assert f"{tmp_path / 'one'}" in text
    assert f"{tmp_path / 'three'}" in text
    assert "\n" not in text


def test_the_same_run_twice_and_its_twin(leave: Leave, tmp_path: Path) -> None:
    one = leave("one")
    assert len(merge([one, one], tmp_path / "out")["trials"]) == 1
    with pytest.raises(UsageError, match=r"one and .*two: both are 'federated epsilon inf seed 1'"):
        merge([one, leave("two")], tmp_path / "out")


def test_what_is_no_finished_run_is_refused(leave: Leave, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        merge([tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no result of a run"):
        merge([tmp_path / "empty"], tmp_path / "out")
    failed = leave("failed")
    result = json.loads((failed / "result.json").read_text())
    (failed / "result.json").write_text(json.dumps(result | {"final": None}))
    with pytest.raises(UsageError, match="left no tested model"):
        merge([failed], tmp_path / "out")


def test_noise_that_was_given_is_named_by_what_was_spent(leave: Leave, tmp_path: Path) -> None:
    sites = {"a": {"num_patients": 4, "epsilon_this_run": 3.14159}}
    path = leave("given", epsilon=8.0, sites=sites)
    result = json.loads((path / "result.json").read_text())
    result["privacy"]["epsilon_target"] = None
    (path / "result.json").write_text(json.dumps(result))
    (cell,) = merge([path], tmp_path / "out")["cells"]
    assert (cell["arm"], cell["epsilon"]) == ("centralized", 3.14)

"""The configuration hash names a result, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import configs
from simulations.comparison.fingerprint import fingerprint, start_fingerprint


def of(*overrides: str) -> str:
    return fingerprint(configs.load(overrides))


@pytest.mark.parametrize(
    "word",
    [
        "run_dir=elsewhere",
        "title=other",
        "simulation.cpus_per_site=2",
        "simulation.gpus_per_site=1",
        "data.cache_dir=cache",
        "data.root=phantoms",
        "tracking.mlflow=http://127.0.0.1:1",
        "augment.epochs=3",
        "gan.width=0.5",
    ],
)
def test_what_decides_nothing_changes_nothing(word: str) -> None:
    assert of(word) == of()


@pytest.mark.parametrize(
    "word",
    [
        "seed=1",
        "privacy.epsilon=7",
        "privacy=none",
        "privacy.delta=1e-6",
        "federation.rounds=9",
        "federation.sites=[hospital-1]",
        "partition=equal",
        "partition.seed=3",
        "data.split_seed=3",
        "data.phantom.num_test=9",
        "data.image_size=32",
        "training.learning_rate=0.1",
        "finetune=lora",
        "strategy=fedprox",
        "simulation.ledger_dir=ledgers",
    ],
)
def test_what_decides_the_result_is_in_it(word: str) -> None:
    assert of(word) != of()


def test_without_privacy_no_epsilon_decides() -> None:
    assert of("privacy=none", "privacy.epsilon=3") == of("privacy=none")


def test_another_process_finds_the_same() -> None:
    program = (
        "import configs; from simulations.comparison.fingerprint import fingerprint; "
        "print(fingerprint(configs.load(['seed=3', 'data.columns.groups={b: x, a: y}'])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(configs.__file__).parents[1])},
    )
    assert done.stdout.strip() == of("seed=3", "data.columns.groups={b: x, a: y}")


def test_inputs_are_named_by_what_is_in_them(tmp_path: Path) -> None:
    weights, moved = tmp_path / "w.safetensors", tmp_path / "moved.safetensors"
    weights.write_bytes(b"one")
    moved.write_bytes(b"one")
    words = ("model.weights_public=test",)
    before = of(*words, f"model.weights={weights}")
    assert of(*words, f"model.weights={moved}") == before
    weights.write_bytes(b"other")
    assert of(*words, f"model.weights={weights}") != before


def test_an_edited_table_is_another_study(tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    table.write_text("image,label\na.png,1\n")
    words = ("data=table", f"data.root={tmp_path}")
    before = of(*words)
    assert of(*words) == before
    table.write_text("image,label\na.png,0\nb.png,1\n")
    assert of(*words) != before


def test_a_pool_is_named_by_its_table_and_provenance(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("image,label\n")
    (tmp_path / "provenance.json").write_text("{}")
    words = ("augment=mix", f"augment.pool={tmp_path}")
    before = of(*words)
    (tmp_path / "provenance.json").write_text('{"digest": "other"}')
    assert of(*words) != before


def test_trials_with_the_same_beginning_share_it(tmp_path: Path) -> None:
    words = ("augment=pretrain_then_dp_head", f"augment.pool={tmp_path}")

    def start(*more: str) -> str | None:
        return start_fingerprint(configs.load([*words, *more]))

    assert start_fingerprint(configs.load([])) is None
    assert start("privacy.epsilon=3") == start("federation.num_sites=1", "privacy=none") == start()
    for more in ("seed=3", "augment.epochs=3", "data.image_size=32", "model=test_vit"):
        assert start(more) != start()

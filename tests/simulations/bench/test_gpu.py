from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from simulations.cli import app

SMALL = (
    *("--rounds", "2", "--steps", "1", "--batch", "4", "--architecture", "test_vit"),
    *("--image-size", "32", "--clients", "2"),
)


@pytest.mark.long
def test_the_bench_prints_and_writes_its_figures(tmp_path: Path) -> None:
    """On the processor, where a GPU may not be."""
    figures = tmp_path / "figures.json"
    asked = (*SMALL, "--device", "cpu", "--json", str(figures))
    done = CliRunner().invoke(app, ["bench", "gpu", *asked])
    assert done.exit_code == 0, done.output
    shared = json.loads(figures.read_text())["shared"]
    assert [(one["clients"], one["private"]) for one in shared] == [
        (1, False),
        (1, True),
        (2, True),
    ]
    for one in shared:
        assert one["samples_per_second"] > 0
        assert one["last_bytes"] >= one["first_bytes"] > 100_000_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    done = CliRunner().invoke(app, ["bench", "gpu", *SMALL])
    assert done.exit_code != 0
    assert "torch finds no GPU here" in str(done.exception)


def test_what_cannot_be_trained_is_said_in_a_line() -> None:
    asked = ("--architecture", "resnet18", "--image-size", "32", "--device", "cpu")
    done = CliRunner().invoke(app, ["bench", "gpu", *asked])
    assert "BatchNorm" in str(done.exception)

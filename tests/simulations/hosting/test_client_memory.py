"""What a process for hospitals is taken to need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import configs
from common.config import Config, Job
from common.errors import UsageError
from simulations.hosting.client_memory import gpu_share, process_bytes
from simulations.run_dir import RunDir
from simulations.sites import SimulatedSites

SMALL = ("model=vit_tiny", "data.image_size=64", "simulation.client_resources=auto")


def sites(folder: Path, *overrides: str, shape: tuple[int, ...] = (1, 64, 64)) -> SimulatedSites:
    run_dir = RunDir(path=folder)
    cohort = run_dir.cohort("hospital-1")
    cohort.mkdir(parents=True, exist_ok=True)
    np.save(cohort / "images.npy", np.zeros((4, *shape), np.float32))
    config: Config = configs.load([*SMALL, *overrides])
    return SimulatedSites(config=config, run_dir=run_dir, names=("hospital-1",), num_classes=2)


def test_a_larger_batch_and_a_larger_image_need_more_up_to_the_sites_bound(tmp_path: Path) -> None:
    few, many, bounded = (
        process_bytes(sites(tmp_path, *words))
        for words in (
            ("training.physical_batch=8",),
            ("training.physical_batch=64",),
            ("training.physical_batch=64", "training.memory_gb=0.2"),
        )
    )
    wide = ("training.physical_batch=8", "data.image_size=128")
    assert few < process_bytes(sites(tmp_path, *wide, shape=(1, 128, 128)))
    assert bounded < many
    assert bounded == 1_000_000_000
    assert 800_000_000 < few < many < 4_000_000_000


def test_on_a_gpu_the_step_is_there(tmp_path: Path) -> None:
    on_cpu = process_bytes(sites(tmp_path))
    on_gpu = sites(tmp_path, "simulation.gpus_per_site=0.5")
    assert process_bytes(on_gpu) == 800_000_000 < on_cpu
    step = on_cpu - 800_000_000
    assert gpu_share(on_gpu, 10_000_000_000) == pytest.approx((1e9 + step) / 1e10)


def test_a_generators_step_is_not_measured(tmp_path: Path) -> None:
    found = sites(tmp_path)
    made = replace(found, config=replace(found.config, job=Job.synthesize))
    with pytest.raises(UsageError, match=r"simulation\.client_resources=auto"):
        process_bytes(made)

"""Memory that is too small for the batch that was asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.dp.training import RoundSeeds
from client.out_of_memory import train_within_memory
from common.messages import Recipe

RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=1.0,
    noise_multiplier=1.0,
    steps=1,
    max_grad_norm=1.0,
    images_per_patient=1,
    optimizer="sgd",
    learning_rate=0.05,
    physical_batch=128,
)

# A round under a limit on address space: what does not fit is refused by the allocator itself.
DRILL = """
import json, logging, resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, psutil, torch
torch.set_num_threads(1)
import client.site
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.site import Site
from client.site_setup import SiteSetup
from common import models
from common.config import FinetuneConfig, FinetuneMode, ModelConfig, Unit
from common.messages import Recipe, TrainRequest
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.seeds import SimulatedSeeds

folder, recipe = Path(sys.argv[1]), Recipe.from_dict(json.loads(sys.argv[2]))
logging.basicConfig(format="%(message)s")  # or as Flower has done it before
cohort = Cohort(
    images=np.random.default_rng(0).random((128, 1, 64, 64), dtype=np.float32),
    labels=np.arange(128) % 2, patients=np.arange(128), num_patients=128,
    patient_ids=tuple(map(str, range(128))),
)
model = SiteModel(
    config=ModelConfig(architecture="vit_tiny_patch16_224"),
    finetune=FinetuneConfig(mode=FinetuneMode.all), image_size=64, num_classes=2, seed=5,
)
built = model.build()
hashes = patient_hashes(cohort.patient_ids, b"k" * 32)

def site(name):
    return Site(SiteSetup(
        name="hospital", cohort=cohort, patient_hashes=hashes,
        ledger=folder / f"{name}.sqlite", replies=folder / name,
        budget=Budget(epsilon=np.inf, delta=1e-5, unit=Unit.patient), model=model,
        seeds=SimulatedSeeds(run_seed=1, site="hospital"),
    ))

def reply(name, physical_batch):
    request = TrainRequest(
        run_id="r", round=1, recipe=replace(recipe, physical_batch=physical_batch),
        frozen_sha256=models.frozen_sha256(built), weights=models.trainable_weights(built),
    )
    return site(name).train(request)

small = reply("small", 4)
train = client.site.train_within_memory

def with_little_memory(*given, **named):
    limit = psutil.Process().memory_info().vms + int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        train(*given, **named)
    finally:  # the reply is stored with what memory there is
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

client.site.train_within_memory = with_little_memory
large = reply("large", recipe.physical_batch)
far = max(float(np.abs(small.weights[n] - v).max()) for n, v in (large.weights or {}).items())
print(json.dumps({
    "status": large.status.value, "events": large.spend["num_events"], "apart": far,
    "moved": max(float(np.abs(v - small.weights[n]).max()) for n, v in
                 models.trainable_weights(built).items()),
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is of Linux")
def test_a_round_that_does_not_fit_is_trained_with_half_as_many_at_once(tmp_path: Path) -> None:
    """Same weights but for the order of sums, charged once, and it says so."""
    recipe = json.dumps(RECIPE.to_dict())
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRILL, str(tmp_path), recipe, str(350_000_000)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},  # each takes addresses
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    words = r"out of memory: the round begins anew with (64|32|16) images at once"
    assert re.search(words, done.stderr), done.stderr
    assert found["status"] == "trained"
    assert found["events"] == 1
    assert found["apart"] < 1e-4 < found["moved"]


def test_it_halves_until_it_fits_and_starts_over_each_time() -> None:
    tried: list[int] = []
    begun: list[None] = []

    def train(recipe: Recipe) -> None:
        tried.append(recipe.physical_batch)
        if recipe.physical_batch > 10:
            raise torch.OutOfMemoryError

    train_within_memory(train, RECIPE, start_over=lambda: begun.append(None))
    assert tried == [128, 64, 32, 16, 8]
    assert len(begun) == 4


@pytest.mark.parametrize("error", [RuntimeError("singular matrix"), FloatingPointError()])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    tried: list[int] = []

    def train(recipe: Recipe) -> None:
        tried.append(recipe.physical_batch)
        raise error

    with pytest.raises(type(error)):
        train_within_memory(train, RECIPE, start_over=lambda: None)
    assert tried == [128]


def test_what_does_not_fit_one_at_a_time_fails() -> None:
    def train(recipe: Recipe) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        train_within_memory(train, replace(RECIPE, physical_batch=2), start_over=lambda: None)


def test_attempts_draw_the_same_patients() -> None:
    seeds = RoundSeeds(sampling=None, noise=None).fixed()
    draws = [np.random.default_rng(seeds.sampling).random(4).tolist() for _ in range(2)]
    assert draws[0] == draws[1]
    assert seeds.repeatable
    assert seeds.fixed() == seeds
    assert RoundSeeds(sampling=7, noise=8).fixed() == RoundSeeds(sampling=7, noise=8)
    other = RoundSeeds(sampling=None, noise=None).fixed()
    assert other.sampling != seeds.sampling
    assert other.key != seeds.key

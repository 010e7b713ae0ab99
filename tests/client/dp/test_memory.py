"""What a step takes in earnest, measured by the kernel in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from client.dp.check import made_up_batch
from client.dp.memory import images_that_fit
from common.config import Precision
from common.errors import UsageError

CHILD = """
import gc, json, sys
import timm, torch
from torch import nn
from client.dp.check import check_engine, made_up_batch
from client.dp.clipping import Clipping
from client.dp.engine import BookkeepingEngine
from client.dp.gradients import PatientOptimizer, PrivateStep
from client.dp.memory import images_that_fit
from client.dp.noise import SystemNoise
from client.dp.patients import PatientBatch
from common.config import Precision

torch.set_num_threads(1)
ask = json.loads(sys.argv[1])

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return 1024 * int(line.split()[1])

def take_steps(model, batches, precision, kind, steps=2):
    optimizer = PatientOptimizer(
        torch.optim.Adam(model.parameters()), noise_multiplier=1.0, max_grad_norm=1.0,
        expected_batch_size=10,
    )
    optimizer.system_noise = SystemNoise()
    engine = BookkeepingEngine(model, precision)
    step = PrivateStep(engine, Clipping(kind=kind, max_grad_norm=1.0), optimizer)
    for _ in range(steps):
        step.step(batches)

def batch_of(counts, shape):
    return PatientBatch(
        images=torch.rand(sum(counts), *shape), labels=torch.arange(sum(counts)) % 2,
        patients=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        num_patients=len(counts),
    )

precision, shape = Precision(ask["precision"]), tuple(ask["shape"])
small = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.Flatten(), nn.LazyLinear(2))
small(torch.rand(1, *shape))
take_steps(small, [batch_of([1, 1], shape)], precision, "flat")
gc.collect()
base = status("VmRSS")
model = timm.create_model(ask["model"], in_chans=1, num_classes=2, **ask["options"])
tried = made_up_batch(shape, num_outputs=2, multilabel=False, one_image_each=False)
fits = images_that_fit(model, tried, precision, limit_bytes=ask["limit"])
largest = ask["largest"]
counts = [largest] * (fits // largest) + [1] * (fits % largest)
if ask["ragged"]:
    counts = [largest] + [1] * (fits - largest)
batches = [batch_of(counts, shape) for _ in range(ask["batches"])]
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
take_steps(model, batches, precision, ask["clipping"])
print(json.dumps({"fits": fits, "peak": status("VmHWM") - base}))
"""

VIT = ("vit_tiny_patch16_224", {"img_size": 64, "patch_size": 8}, 64)
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"img_size": 64, "window_size": 4, "embed_dim": 48, "depths": [2, 2, 2, 2]},
    64,
)
CONVNEXT = ("convnext_tiny", {"depths": [2, 2, 2, 2], "dims": [48, 96, 192, 384]}, 64)


def measured(model: tuple[str, dict[str, Any], int], limit: float, **changes: Any) -> Any:
    name, options, size = model
    ask = {
        "model": name,
        "options": options,
        "shape": [1, size, size],
        "limit": limit,
        "precision": "fp32",
        "clipping": "flat",
        "largest": 1,
        "ragged": False,
        "batches": 1,
        **changes,
    }
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, json.dumps(ask)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("model", "limit", "changes"),
    [
        (VIT, 4e8, {"batches": 2}),
        (SWIN, 4e8, {"clipping": "per_layer"}),
        pytest.param(SWIN, 4e8, {"largest": 8, "ragged": True}, marks=pytest.mark.long),
        pytest.param(SWIN, 4e8, {"precision": "bf16"}, marks=pytest.mark.long),
        pytest.param(VIT, 8e8, {"largest": 4}, marks=pytest.mark.long),
        pytest.param(CONVNEXT, 4e8, {}, marks=pytest.mark.long),
    ],
    ids=lambda value: value[0][:4] if isinstance(value, tuple) else str(value),
)
def test_as_many_images_as_fit_stay_within_the_limit(
    model: tuple[str, dict[str, Any], int], limit: float, changes: dict[str, Any]
) -> None:
    found = measured(model, limit, **changes)
    assert found["fits"] >= 5
    assert found["peak"] <= limit
    assert found["peak"] >= 0.3 * limit  # and it is no empty promise


def _net(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, width), nn.Tanh(), nn.Linear(width, 2))


def _fit(limit: float, model: nn.Module | None = None) -> int:
    batch = made_up_batch((1, 32, 32), num_outputs=2, multilabel=False, one_image_each=False)
    return images_that_fit(model or _net(), batch, Precision.fp32, limit_bytes=limit)


def test_more_memory_fits_more_images() -> None:
    fits = [_fit(limit) for limit in (3e6, 6e6, 3e7)]
    assert fits == sorted(set(fits))
    # beyond the weights, in proportion: an image costs its input, its factors and little else
    assert _fit(1.2e7) - _fit(6e6) == pytest.approx(_fit(3.6e7) - _fit(3e7), abs=1)


def test_one_image_too_big_is_refused() -> None:
    with pytest.raises(UsageError, match=r"training\.memory_gb=0\.00157: one image needs 0\.00"):
        _fit(1.57e6)
    assert _fit(1.7e6) >= 1


def test_frozen_layers_leave_room() -> None:
    frozen = _net(2000)
    frozen[1].requires_grad_(False)
    assert _fit(1e8, frozen) > 1.5 * _fit(1e8, _net(2000))


def test_trying_leaves_no_trace() -> None:
    model = _net()
    before = [p.clone() for p in model.parameters()]
    _fit(1e7, model)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())

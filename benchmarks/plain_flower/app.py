"""The same task in plain Flower: its own simulation engine, Opacus in the client, nothing of ours.

Written as Flower's and Opacus's own examples are: the client loads its data, wraps model, optimiser
and loader by ``PrivacyEngine.make_private`` and trains one epoch; the server is ``FedAvg``.
Patient level: the dataset is of patients, and gives a random image of the one that is drawn, so
Opacus's samples are patients. Its books are not kept here: an engine that is made anew in each
round forgets the rounds before, and the script claims no epsilon.

``python app.py FOLDER NOISE_MULTIPLIER`` with FOLDER/train/HOSPITAL/PATIENT/IMAGE_LABEL.png and
FOLDER/test/PATIENT/IMAGE_LABEL.png.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from opacus import PrivacyEngine
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

FOLDER = Path(os.environ.get("PLAIN_FLOWER_FOLDER", "."))
NOISE_MULTIPLIER = float(os.environ.get("PLAIN_FLOWER_NOISE", "1.0"))
NUM_ROUNDS, BATCH_SIZE, IMAGE_SIZE = 3, 32, 64

client_app = ClientApp()
server_app = ServerApp()


def build_model() -> nn.Module:
    """ViT-Tiny for grey images of 64 pixels."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", in_chans=1, img_size=IMAGE_SIZE, num_classes=2)


def read(path: Path) -> tuple[Tensor, int]:
    """(1, S, S) in [-1, 1], and the label."""
    pixels = np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None] * 2 - 1, int(path.stem.rpartition("_")[2])


class Patients(Dataset[tuple[Tensor, int]]):
    """A random image of each patient."""

    def __init__(self, folder: Path) -> None:
        self.images = [
            [read(image) for image in sorted(patient.glob("*.png"))]
            for patient in sorted(folder.iterdir())
        ]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return random.choice(self.images[index])  # noqa: S311


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch of DP-SGD."""
    began = time.monotonic()
    hospital = sorted((FOLDER / "train").iterdir())[int(context.node_config["partition-id"])]
    patients = Patients(hospital)
    model = build_model()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    made: Any = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(patients, batch_size=BATCH_SIZE, shuffle=True),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=1.0,
    )
    private, optimizer, loader = made
    loss_of = nn.CrossEntropyLoss()
    num_steps = 0
    for images, labels in loader:
        optimizer.zero_grad()
        loss_of(private(images), labels).backward()
        optimizer.step()
        num_steps += 1
    content = RecordDict(
        {
            "arrays": ArrayRecord(private._module.state_dict()),
            "metrics": MetricRecord(
                {
                    "num-examples": len(patients),
                    "num-steps": num_steps,
                    "seconds": time.monotonic() - began,
                }
            ),
        }
    )
    return Message(content=content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of FedAvg, and the accuracy of the last model on the test images."""
    del context
    model = build_model()
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=num_hospitals())
    result = strategy.start(
        grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=NUM_ROUNDS
    )
    model.load_state_dict(result.arrays.to_torch_state_dict())
    model.eval()
    images, labels = zip(*map(read, sorted((FOLDER / "test").glob("*/*.png"))), strict=True)
    with torch.no_grad():
        found = torch.cat([model(part) for part in torch.stack(images).split(64)]).argmax(1)
    trained = [dict(metrics) for _, metrics in sorted(result.train_metrics_clientapp.items())]
    accuracy = float((found == torch.tensor(labels)).float().mean())
    print(json.dumps({"accuracy": accuracy, "rounds": trained}), flush=True)


def num_hospitals() -> int:
    """How many there are."""
    return len(list((FOLDER / "train").iterdir()))


if __name__ == "__main__":
    folder, noise = sys.argv[1:]
    # Flower's actors are new processes, which import this file and see the environment alone.
    os.environ["PLAIN_FLOWER_FOLDER"] = folder
    os.environ["PLAIN_FLOWER_NOISE"] = noise
    FOLDER, NOISE_MULTIPLIER = Path(folder), float(noise)
    warnings.simplefilter("ignore")
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=num_hospitals(),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )

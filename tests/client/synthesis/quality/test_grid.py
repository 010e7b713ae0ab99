from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.synthesis.quality.grid import class_names, write_grid
from client.synthesis.quality.images import LabelledImages
from common.config import TaskKind
from common.errors import UsageError
from common.task import Task


def _samples(labels: list[int], size: int = 32) -> LabelledImages:
    shades = np.linspace(0, 1, len(labels), dtype=np.float32)
    images = np.ones((len(labels), 1, size, size), dtype=np.float32) * shades[:, None, None, None]
    return LabelledImages(images=images, labels=np.array(labels))


def _shades(picture: Image.Image) -> set[int]:
    """Greys that fill at least a cell."""
    values, counts = np.unique(np.asarray(picture), return_counts=True)
    return set(values[counts >= 128 * 128].tolist()) - {255}


def test_the_first_images_of_each_class_stand_in_its_row(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    write_grid(path, _samples([0, 1, 0, 1, 0, 1]), names=("benign", "malignant"), per_class=2)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture)
    shown = [round(255 * shade / 5) for shade in (0, 1, 2, 3)]
    assert _shades(Image.fromarray(pixels)) == set(shown)
    tops = {shade: np.nonzero((pixels == shade).sum(axis=1) >= 128)[0] for shade in shown}
    assert tops[shown[0]].max() == tops[shown[2]].max() < tops[shown[1]].min()
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_sizes_and_missing_classes(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    for size in (8, 64, 100, 300):
        write_grid(path, _samples([0, 0, 2], size), names=("a", "b", "c " * 99), per_class=8)
        with Image.open(path) as picture:
            assert 128 < picture.height < 900
            assert picture.width < 900


def test_every_label_needs_a_name(tmp_path: Path) -> None:
    for labels in ([0, 1, 2], [-1, 0]):
        with pytest.raises(UsageError, match="names"):
            write_grid(tmp_path / "grid.png", _samples(labels), names=("a", "b"))
    with pytest.raises(UsageError, match="per_class"):
        write_grid(tmp_path / "grid.png", _samples([0]), names=("a",), per_class=0)
    with pytest.raises(OSError, match="No such file"):
        write_grid(tmp_path / "no" / "grid.png", _samples([0]), names=("a",))
    assert list(tmp_path.iterdir()) == []


def test_names_of_classes() -> None:
    task = Task(kind=TaskKind.multiclass, names=("benign", "malignant", "normal"))
    assert class_names(task) == task.names


def test_labels_are_checked() -> None:
    images = np.zeros((2, 1, 8, 8), dtype=np.float32)
    for labels in (np.zeros(3, dtype=np.int64), np.zeros(2), np.zeros((2, 1), dtype=np.int64)):
        with pytest.raises(UsageError, match="labels"):
            LabelledImages(images=images, labels=labels)

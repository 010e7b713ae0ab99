from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.synthesis.image_set import digest_of, read_image_set, write_image_set
from common import provenance
from common.config import AugmentConfig, TaskKind
from common.errors import UsageError
from common.provenance import Kind, Provenance
from common.task import Task

MADE = Provenance(kind=Kind.public, reason="drawn by a program")
TASK = Task(kind=TaskKind.binary, names=("malignant",))
THREE = Task(kind=TaskKind.multiclass, names=("normal", "viral", "bacterial"))
IMAGES = np.random.default_rng(0).random((5, 1, 16, 16), dtype=np.float32)
CLASSES = np.array([0, 1, 0, 1, 1])


def batches() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    yield IMAGES[:3], CLASSES[:3]
    yield IMAGES[3:], CLASSES[3:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    write_image_set(path, batches(), words=("0", "1"), provenance=MADE)
    return path


def test_what_is_written_is_read_back_but_for_eight_bits(folder: Path) -> None:
    images = read_image_set(AugmentConfig(pool=folder), TASK, image_size=16)
    assert np.abs(images.cohort.images - IMAGES).max() <= 0.5 / 255 + 1e-6
    assert images.cohort.labels.tolist() == CLASSES.tolist()
    assert images.cohort.num_patients == 5
    assert images.provenance == replace(MADE, digest=images.digest)
    assert images.digest == digest_of(folder)
    assert images.source.request_id == f"pool/{images.digest}"


def test_classes_have_their_names(tmp_path: Path) -> None:
    several = ((IMAGES, np.array([0, 2, 1, 2, 0])) for _ in range(1))
    write_image_set(tmp_path / "images", several, words=THREE.names, provenance=MADE)
    images = read_image_set(AugmentConfig(pool=tmp_path / "images"), THREE, image_size=8)
    assert images.cohort.labels.tolist() == [0, 2, 1, 2, 0]
    assert images.cohort.images.shape == (5, 1, 8, 8)


def _no_provenance(folder: Path) -> None:
    (folder / "provenance.json").unlink()


def _another_image(folder: Path) -> None:
    (folder / "images" / "000001.png").write_bytes((folder / "images" / "000000.png").read_bytes())


def _a_further_image(folder: Path) -> None:
    (folder / "images" / "000009.png").write_bytes((folder / "images" / "000000.png").read_bytes())


def _another_label(folder: Path) -> None:
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("000002.png,0", "000002.png,1"))


def _truncated_statement(folder: Path) -> None:
    path = folder / "provenance.json"
    path.write_text(path.read_text()[:40])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_provenance, "no provenance"),
        (_another_image, "not those that its provenance is about"),
        (_a_further_image, "not those that its provenance is about"),
        (_another_label, "not those that its provenance is about"),
        (_truncated_statement, "not a provenance"),
    ],
)
def test_images_are_bound_to_their_provenance(damage, words: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(UsageError, match=words) as error:
        read_image_set(AugmentConfig(pool=folder), TASK, image_size=16)
    assert "\n" not in str(error.value)


def _unbound(folder: Path) -> None:
    (folder / "provenance.json").write_text(provenance.dumps(MADE))


@pytest.mark.parametrize(
    ("cell", "words"),
    [("000002.png,2", "row 3 must hold 0 or 1"), ("absent.png,0", "image of row 3")],
)
def test_a_bad_row_is_named(cell: str, words: str, folder: Path) -> None:
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("000002.png,0", cell))
    _unbound(folder)
    with pytest.raises(UsageError, match=words):
        read_image_set(AugmentConfig(pool=folder), TASK, image_size=16)


def test_a_truncated_image_is_named_by_its_row(folder: Path) -> None:
    path = folder / "images" / "000003.png"
    path.write_bytes(path.read_bytes()[:60])
    _unbound(folder)
    with pytest.raises(UsageError, match="row 4"):
        read_image_set(AugmentConfig(pool=folder), TASK, image_size=16)


def test_columns_and_statement_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("image,label", "file,malignant"))
    (folder / "provenance.json").unlink()
    stated = tmp_path / "stated.json"
    stated.write_text(provenance.dumps(MADE))
    config = AugmentConfig(
        pool=folder, provenance=stated, image_column="file", label_column="malignant"
    )
    assert read_image_set(config, TASK, image_size=16).cohort.num_patients == 5
    with pytest.raises(UsageError, match=r"augment\.image_column|augment\.image"):
        read_image_set(AugmentConfig(pool=folder, provenance=stated), TASK, image_size=16)
    with pytest.raises(UsageError, match="no such folder"):
        read_image_set(AugmentConfig(pool=tmp_path / "absent"), TASK, image_size=16)


def test_nothing_is_left_of_what_broke_off(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        yield IMAGES[:3], CLASSES[:3]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_image_set(tmp_path / "images", broken(), words=("0", "1"), provenance=MADE)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        write_image_set(folder, batches(), words=("0", "1"), provenance=MADE)
    written = json.loads((folder / "provenance.json").read_text())
    assert written["kind"] == "public"

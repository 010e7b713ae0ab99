from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from client.synthesis.generator_file import read_generator, write_generator
from client.synthesis.image_set import digest_of, read_image_set
from common import models
from common.config import AugmentConfig, TaskKind
from common.errors import UsageError
from common.generators.blueprint import Blueprint
from common.generators.settings import GanSettings, MomentSettings
from common.provenance import Kind, Provenance
from common.task import Task
from simulations.cli import app

MADE = Provenance(kind=Kind.public, reason="trained on phantoms")
GAN = Blueprint(settings=GanSettings(width=0.03125), image_size=32, num_classes=3)
MOMENTS = Blueprint(settings=MomentSettings(), image_size=32, num_classes=3)
WORDS = ("a", "b", "c")
TASK = Task(kind=TaskKind.multiclass, names=("a", "b", "c"))


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    path = tmp_path / "generator.safetensors"
    write_generator(path, models.trainable_weights(GAN.build(3)), GAN, WORDS, MADE)
    return path


def drawn(generator: Path, folder: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["sample", str(generator), str(folder), *arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_images_carry_the_generators_provenance(generator: Path, tmp_path: Path) -> None:
    said = drawn(generator, tmp_path / "one", "--num-images", "300")
    assert said == f"300 images: {tmp_path / 'one'}\n"
    images = read_image_set(AugmentConfig(pool=tmp_path / "one"), TASK, image_size=32)
    assert (images.provenance.kind, images.provenance.reason) == (MADE.kind, MADE.reason)
    assert np.bincount(images.cohort.labels).tolist() == [100, 100, 100]
    assert images.cohort.images.std() > 0.001
    drawn(generator, tmp_path / "again", "--num-images", "300")
    drawn(generator, tmp_path / "other", "--num-images", "300", "--seed", "1")
    digests = [digest_of(tmp_path / name) for name in ("one", "again", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_what_is_read_is_what_was_written(generator: Path) -> None:
    kept = read_generator(generator)
    assert (kept.blueprint, kept.words) == (GAN, WORDS)
    assert kept.provenance == MADE
    written = models.trainable_weights(GAN.build(3))
    assert models.weights_sha256(models.trainable_weights(kept.generator)) == (
        models.weights_sha256(written)
    )


def test_bad_files_are_refused_in_one_line(generator: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(generator), bare)
    with pytest.raises(UsageError, match="no provenance in it") as error:
        drawn(bare, tmp_path / "images")
    assert "\n" not in str(error.value)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(generator.read_bytes()[:-1000])
    with pytest.raises(UsageError, match="not a safetensors file"):
        drawn(cut, tmp_path / "images")
    with pytest.raises(UsageError, match="not a safetensors file"):
        drawn(tmp_path / "absent", tmp_path / "images")
    weights = dict(list(load_file(generator).items())[1:])
    part = tmp_path / "part.safetensors"
    write_generator(part, weights, GAN, WORDS, MADE)
    with pytest.raises(UsageError, match="not a generator"):
        drawn(part, tmp_path / "images")
    assert not (tmp_path / "images").exists()
    with pytest.raises(UsageError, match="exists already"):
        drawn(generator, tmp_path)


def test_moments_are_kept_as_well(tmp_path: Path) -> None:
    path = tmp_path / "moments.safetensors"
    empty = models.trainable_weights(MOMENTS.build())
    weights = {name: value + np.float32(0.01) for name, value in empty.items()}
    write_generator(path, weights, MOMENTS, WORDS, MADE)
    kept = read_generator(path)
    assert kept.blueprint == MOMENTS
    assert models.weights_sha256(models.trainable_weights(kept.generator)) == (
        models.weights_sha256(weights)
    )
    drawn(path, tmp_path / "images", "--num-images", "6")
    assert len(list((tmp_path / "images" / "images").iterdir())) == 6

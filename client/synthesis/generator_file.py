"""A generator as one file: its weights, what it draws, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common import models, provenance
from common.errors import UsageError
from common.files import write_atomically
from common.generators.blueprint import Blueprint
from common.generators.conditional_gan import ConditionalGan
from common.generators.moments import MomentGenerator
from common.messages import Weights
from common.provenance import Provenance

_ABOUT = "fedward.generator"


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorFile:
    """A generator that was read from a file.

    Attributes:
        blueprint: its kind and sizes.
        words: what a table calls each class, such as ``("0", "1")``.
        provenance: where it comes from.
        generator: with its weights.
    """

    blueprint: Blueprint
    words: tuple[str, ...]
    provenance: Provenance
    generator: ConditionalGan | MomentGenerator


def write_generator(
    path: Path, weights: Weights, blueprint: Blueprint, words: Sequence[str], made: Provenance
) -> None:
    """Write the weights with what has to be known of them."""
    fields = {**blueprint.to_dict(), "words": list(words)}
    metadata = {_ABOUT: json.dumps(fields), provenance.METADATA_KEY: provenance.dumps(made)}
    arrays = cast("dict[str, NDArray[Any]]", weights)
    write_atomically(path, save(arrays, metadata=metadata))


def read_generator(path: Path) -> GeneratorFile:
    """The generator in ``path``.

    Raises:
        UsageError: if the file is damaged, is no generator, or does not say where it comes from.
    """
    made = provenance.read_weights_file(path)
    try:
        with cast("Any", safe_open(str(path), framework="numpy")) as file:
            fields = json.loads(file.metadata()[_ABOUT])
            weights = {name: np.asarray(file.get_tensor(name)) for name in list(file.keys())}
        blueprint = Blueprint.from_dict(fields)
        words = tuple(map(str, fields["words"]))
        if len(words) != blueprint.num_classes:
            raise ValueError(f"{len(words)} words for {blueprint.num_classes} classes")
        generator = blueprint.build()
        models.load_trainable_weights(generator, weights)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{path}: not a generator ({text})") from error
    return GeneratorFile(blueprint=blueprint, words=words, provenance=made, generator=generator)

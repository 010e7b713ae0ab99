"""The configuration hash: everything that decides the result of a trial, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.config import AugmentMode, Config, StudyKind
from common.provenance import of_this_program

_TABLES = (".csv", ".parquet", ".txt")
_BESIDE = ("job", "title", "run_dir", "resume", "simulation", "tracking", "gan")
_START = ("seed", "data", "model", "finetune", "augment", "training")


def fingerprint(config: Config) -> str:
    """Twenty hexadecimal digits that name the result of ``config``.

    In it: every setting that can change the result, the contents of the study's tables, of weights
    and of what describes the synthetic images, and the version of this program. Not in it: where
    results and caches lie, titles, trackers, and how many processors are used. Images of a study
    are named by its folder and its tables; whoever changes pixels under the same table must use
    another folder for the comparison.
    """
    return _digest(_deciding(config))


def start_fingerprint(config: Config) -> str | None:
    """Names what the model begins with, where it is first trained on synthetic images."""
    if not config.augment.pretrains:
        return None
    deciding = _deciding(config)
    return _digest({name: deciding[name] for name in (*_START, "program", "files")})


def _deciding(config: Config) -> dict[str, Any]:
    settings = {k: v for k, v in asdict(config).items() if k not in _BESIDE}
    data, augment, privacy = settings["data"], settings["augment"], settings["privacy"]
    for name in ("cache_dir", "label_rules"):
        del data[name]
    if config.data.kind is StudyKind.phantom:
        del data["root"]  # where they are kept; the recipe makes them
    if config.augment.mode is AugmentMode.none:
        settings["augment"] = {"mode": augment["mode"]}
    if not config.privacy.private:
        for name in ("epsilon", "budget", "noise_multiplier"):
            del privacy[name]
    for name in ("weights", "start"):  # by content, below
        del settings["model"][name]
    settings["ledgers"] = str(config.simulation.ledger_dir)
    settings["program"] = of_this_program()
    settings["files"] = dict(_files(config))
    return settings


def _files(config: Config) -> Iterable[tuple[str, Any]]:
    model, augment, root = config.model, config.augment, config.data.root
    for name, path in (("weights", model.weights), ("start", model.start)):
        if path is not None and path.is_file():
            yield name, _of_file(path)
    if root is not None and root.is_dir() and config.data.kind is not StudyKind.phantom:
        yield "tables", _of_tables(root)
    if augment.mode is not AugmentMode.none and augment.pool is not None:
        if augment.pool.is_dir():
            yield "pool", _of_tables(augment.pool)
        origin = augment.provenance or augment.pool / "provenance.json"
        if origin.is_file():
            yield "provenance", _of_file(origin)


def _of_tables(folder: Path) -> dict[str, str]:
    tables = sorted(path for path in folder.iterdir() if path.suffix in _TABLES and path.is_file())
    return {path.name: _of_file(path) for path in tables}


def _of_file(path: Path) -> str:
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, size: int, changed: int) -> str:
    """SHA-256, computed again only where size or time changed."""
    del size, changed
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(settings: dict[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=_as_text)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _as_text(value: Any) -> str:
    """Paths and choices."""
    return str(value.value if isinstance(value, Enum) else value)

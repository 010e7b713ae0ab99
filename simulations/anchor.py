"""Paths of a configuration are meant from where the command was given; jobs work elsewhere."""

from __future__ import annotations

from pathlib import Path

from common.config import Config


def anchor(config: Config, here: Path) -> Config:
    """``config`` itself, with every path of its input and of what outlives it absolute.

    Args:
        config: as it was composed; changed.
        here: folder that relative paths start from.
    """
    data, model, augment, simulation = (
        config.data,
        config.model,
        config.augment,
        config.simulation,
    )
    data.root = data.root and here / data.root
    data.cache_dir = data.cache_dir and here / data.cache_dir
    model.weights = model.weights and here / model.weights
    model.start = model.start and here / model.start
    augment.pool = augment.pool and here / augment.pool
    augment.provenance = augment.provenance and here / augment.provenance
    simulation.ledger_dir = simulation.ledger_dir and here / simulation.ledger_dir
    return config

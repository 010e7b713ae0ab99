"""Chest radiographs: several findings an image, as NIH ChestX-ray14 and others publish them.

What is special here is the layout: images are named by their file name alone and lie in any folder
below ``data.image_folder`` (NIH spreads them over ``images_001`` to ``images_012``), and NIH's
official split is two lists of names. Findings, ages and sex are read as for any table; see
``configs/data/nih_cxr.yaml`` and ``chest_xray.yaml``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from client.data.facts import FactReader
from client.data.patient import PatientHash
from client.data.rows import study_folder
from client.data.table import TableStudy, image_folder, image_reader, table_records
from common.config import DataConfig
from common.errors import DataError

OFFICIAL_TEST = "test_list.txt"
"""NIH's list of the images of its test patients; all others are for training."""


def read_chest_xray(config: DataConfig, hashed: PatientHash) -> TableStudy:
    """Reads a table of chest radiographs and finds each image by its name or path.

    Where ``test_list.txt`` lies beside the table and ``data.columns.split`` is not set, that is the
    official split.

    Raises:
        DataError: As `client.data.table.read_table`; or two files have the name of an image.
    """
    facts = FactReader.of(config, hashed)
    records = table_records(config, facts, named=_files_by_name(config))
    names = _test_names(config)
    if names is not None:
        records = tuple(
            replace(record, split="test" if record.path.name in names else "train")
            for record in records
        )
    return TableStudy(
        name=config.name, task=facts.task, records=records, read_file=image_reader(config)
    )


def _files_by_name(config: DataConfig) -> dict[str, list[Path]]:
    """Every file below the folder of images; links are not followed."""
    files: dict[str, list[Path]] = {}
    for folder, _, names in os.walk(image_folder(config)):
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                files.setdefault(name, []).append(path)
    return files


def _test_names(config: DataConfig) -> set[str] | None:
    path = study_folder(config) / OFFICIAL_TEST
    if config.columns.split is not None or not path.is_file():
        return None
    try:
        return set(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data: {OFFICIAL_TEST} cannot be read ({type(error).__name__})") from None

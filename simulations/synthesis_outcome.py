"""From trained generators to the files of a run: result.json, grid.png, quality.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from client.data.cohort import Cohort
from client.synthesis.image_set import read_image_set
from client.synthesis.quality.assessment import QualitySettings, assess
from client.synthesis.quality.backbone import Backbone
from client.synthesis.quality.grid import class_names, write_grid
from client.synthesis.quality.images import LabelledImages
from common.config import AugmentConfig
from common.files import write_atomically
from common.provenance import Provenance
from common.seeds import derive_seed
from server.rounds import Outcome
from simulations.outcome import privacy_facts, run_facts
from simulations.scene import Scene
from simulations.sites import SimulatedSites


def finish(
    scene: Scene, sites: SimulatedSites, outcomes: Sequence[Outcome], made: Provenance
) -> dict[str, Any]:
    """Look at the images, write everything; returns the content of ``result.json``."""
    config, run_dir, task = scene.config, scene.run_dir, scene.hospitals.task
    pool = read_image_set(
        AugmentConfig(pool=run_dir.images), task, image_size=config.data.image_size
    )
    images = LabelledImages(images=pool.cohort.images, labels=pool.cohort.labels)
    write_grid(run_dir.grid, images, names=class_names(task))
    if config.gan.assess:
        scene.stage("measuring the images")
        figures = assess(
            images,
            _training_images(scene, sites),
            scene.hospitals.val,
            settings=QualitySettings(
                backbone=Backbone.load(
                    config.model,
                    image_size=config.data.image_size,
                    seed=derive_seed(config.seed, "model"),
                ),
                task=task,
                seed=derive_seed(config.seed, "quality"),
                progress=scene.part,
            ),
        )
        write_atomically(run_dir.quality, json.dumps(figures.to_dict(), indent=2) + "\n")
    result = run_facts(config, scene.hospitals, outcomes[0].state, outcomes[0].checkpoint)
    result["rounds"] = [record for each in outcomes for record in each.checkpoint.history]
    result["privacy"] = privacy_facts(scene.hospitals, sites, outcomes[0].recipe)
    result["made"] = {
        "images": str(run_dir.images.name),
        "num_images": pool.cohort.num_patients,
        "grid": run_dir.grid.name,
        "quality": run_dir.quality.name if config.gan.assess else None,
        "provenance": made.to_dict(),
    }
    write_atomically(run_dir.result, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def _training_images(scene: Scene, sites: SimulatedSites) -> Cohort:
    """The patients of all hospitals that trained; a simulation may look at them all."""
    cohorts = [sites.setup(name).cohort for name in scene.approved()]
    before = np.cumsum([0, *(cohort.num_patients for cohort in cohorts)])
    return Cohort(
        images=np.concatenate([cohort.images for cohort in cohorts]),
        labels=np.concatenate([cohort.labels for cohort in cohorts]),
        patients=np.concatenate(
            [cohort.patients + first for cohort, first in zip(cohorts, before, strict=False)]
        ),
        num_patients=int(before[-1]),
        patient_ids=(),
    )

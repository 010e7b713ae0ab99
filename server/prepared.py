"""A run that is ready to be asked of hospitals: its folder at the server."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from common import exchange
from common.config import AugmentMode, Config, Job, Trust
from common.errors import UsageError
from common.files import write_atomically
from common.secure_aggregation.roster import Roster
from common.seeds import derive_seed
from server.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint

SCHEMA = "fedward.prepared/1"
RUNS_VARIABLE = "FEDWARD_RUNS"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """The folder of a run.

    Its weights are made once, when it is prepared; the process that holds the rounds builds no
    model and needs no torch.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """State after the last rounds; the first one is what the run begins with."""
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        """What happened, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def result(self) -> Path:
        """How it ended."""
        return self.path / "result.json"

    @property
    def weights(self) -> Path:
        """The final model's trainable weights."""
        return self.path / "weights.safetensors"

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def _facts(self) -> Path:
        return self.path / "prepared.json"

    def config(self) -> Config:
        """What was asked for."""
        return configs.read_yaml(self.config_file)

    def frozen_sha256(self) -> str:
        """Names the weights that do not travel."""
        return str(self._read_facts()["frozen_sha256"])

    def site_keys(self) -> dict[str, str]:
        """By which hospitals that were admitted when the run was prepared sign what they spend."""
        return dict(self._read_facts()["site_keys"])

    def identities(self) -> Roster | None:
        """By which keys hospitals know each other, where only sums of updates are to be seen."""
        config = self.config()
        if config.federation.trust is Trust.local:
            return None
        return _roster(config, self.site_keys())

    def _read_facts(self) -> dict[str, Any]:
        return json.loads(self._facts.read_text())

    def checkpoint(self) -> Checkpoint:
        """Where the run is.

        Raises:
            UsageError: It is no prepared run, or its checkpoint is damaged.
        """
        found = latest_checkpoint(self.checkpoints)
        if found is None:
            raise UsageError(f"{self.path}: not a prepared run")
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a study needs of the model.

    Attributes:
        num_outputs: classes or findings.
        volumes: whether images are volumes.
    """

    num_outputs: int = 2
    volumes: bool = False


def find(runs: Path, name: str) -> PreparedRun:
    """The run called ``name`` among ``runs``.

    Raises:
        UsageError: There is none.
    """
    path = runs / exchange.check_name("run", name)
    if not path.is_dir():
        raise UsageError(f"run={name}: not prepared (consortium prepare)")
    return PreparedRun(path=path)


def prepare(
    runs: Path, name: str, config: Config, shape: Shape, site_keys: Mapping[str, str]
) -> PreparedRun:
    """Build the model and write the folder of the run, whole or not at all.

    Args:
        runs: where runs lie.
        name: of this one.
        config: as hospitals have it in their settings, with the names of those that take part.
        shape: of the model.
        site_keys: public keys of the hospitals' agents, as they enrolled.

    Raises:
        UsageError: The name is taken, or the configuration asks for what no server can prepare.
    """
    from common import models

    _check(config)
    if config.federation.trust is not Trust.local:
        _roster(config, site_keys)
    path = runs / exchange.check_name("run", name)
    if path.exists():
        raise UsageError(f"run={name}: is prepared already; choose another name")
    model = models.build(
        config.model,
        config.finetune,
        image_size=config.data.image_size,
        num_classes=shape.num_outputs,
        seed=derive_seed(config.seed, "model"),
        depth=config.data.volume.depth if shape.volumes else None,
    )
    part = runs / f".{name}.{secrets.token_hex(4)}"
    try:
        part.mkdir(mode=0o700)
        run = PreparedRun(path=part)
        write_atomically(run.config_file, configs.dump_yaml(config))
        keys = {name: key for name, key in site_keys.items() if name in config.federation.sites}
        facts = {
            "schema": SCHEMA,
            "frozen_sha256": models.frozen_sha256(model),
            "site_keys": keys,
        }
        write_atomically(run._facts, json.dumps(facts) + "\n")
        weights = models.shared_weights(model, config.strategy.personal)
        start = Checkpoint(run_id=secrets.token_hex(8), round=0, weights=weights)
        save_checkpoint(start, run.checkpoints)
        part.rename(path)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UsageError(f"{error.filename or path}: {error.strerror}") from error
    return PreparedRun(path=path)


def _roster(config: Config, site_keys: Mapping[str, str]) -> Roster:
    """The identities of the hospitals of a run.

    Raises:
        UsageError: One of them has not enrolled, or they are no roster.
    """
    unknown = sorted(set(config.federation.sites) - set(site_keys))
    if unknown:
        raise UsageError(
            f"federation.trust=secure_aggregation: the key of {unknown[0]} is not known; it has "
            "to enrol and be admitted first"
        )
    return Roster.of({name: site_keys[name] for name in config.federation.sites})


def _check(config: Config) -> None:
    if not config.federation.sites:
        raise UsageError("federation.sites: must name the hospitals that take part")
    if config.job is not Job.classify:
        raise UsageError(f"job={config.job.value}: only classify can be prepared")
    if config.augment.mode is not AugmentMode.none:
        raise UsageError(f"augment={config.augment.mode.value}: agents take none")

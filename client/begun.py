"""What a training began with, until what it made is stored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from client.dp.training import RoundSeeds
from common import models
from common.files import write_atomically
from common.messages import TrainRequest

_SUFFIX = ".begun"


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """The request, and a hospital's draws and noise: a second attempt repeats the first.

    Whether an attempt fails may depend on its draws, its noise and the request. If the second one
    drew anew, or did something else, each failure that the server sees would be one more look at
    the patients, and none of them in the ledger.

    Attributes:
        request: its SHA-256.
        seeds: repeatable; secret, since noise that can be drawn again can be removed.
    """

    request: str
    seeds: RoundSeeds = field(repr=False)

    @classmethod
    def with_draws(cls, request: TrainRequest, seeds: RoundSeeds) -> Begun:
        """Of a request that nothing has been done for; what ``seeds`` leave open is drawn."""
        return cls(request=_sha256(request), seeds=seeds.fixed())

    def is_of(self, request: TrainRequest) -> bool:
        """Whether this is what ``request`` asks for, to the last bit."""
        return self.request == _sha256(request)

    def write(self, path: Path) -> None:
        """Write to ``path``, for the owner alone, and forget what else was begun there."""
        seeds, key = self.seeds, self.seeds.key
        content = {
            "request": self.request,
            "sampling": seeds.sampling,
            "noise": seeds.noise,
            "key": None if key is None else key.hex(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"*{_SUFFIX}"):
            old.unlink(missing_ok=True)
        write_atomically(path, json.dumps(content), mode=0o600)

    @classmethod
    def read(cls, path: Path) -> Begun | None:
        """The inverse of `write`; none if there is no such file, or it is damaged."""
        try:
            content = json.loads(path.read_bytes())
            key = content["key"]
            seeds = RoundSeeds(
                sampling=content["sampling"],
                noise=content["noise"],
                key=None if key is None else bytes.fromhex(key),
            )
            return cls(request=content["request"], seeds=seeds)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def beside(stored: Path) -> Path:
        """Where this lies until ``stored`` is written."""
        return stored.with_suffix(_SUFFIX)


def _sha256(request: TrainRequest) -> str:
    weights, control = map(models.weights_sha256, (request.weights, request.control))
    about = [request.run_id, request.round, request.recipe.to_dict(), request.frozen_sha256]
    return hashlib.sha256(json.dumps([*about, weights, control]).encode()).hexdigest()

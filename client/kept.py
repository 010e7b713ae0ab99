"""What a site keeps of its last round: the reply it gave, and what never leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import LedgerError
from common.files import write_atomically
from common.messages import Weights

_SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """One file of this is the site's whole memory between rounds, so that no two parts disagree.

    Attributes:
        run_id: of the run that the rest belongs to.
        weights: the reply (private, released).
        control: the site's SCAFFOLD control variate after the round: a function of released
            weights alone; empty without.
        local: layers of the site's own, by name of weight (private, not released).
    """

    run_id: str
    weights: Weights = field(repr=False)
    control: Weights = field(default_factory=dict[str, NDArray[np.float32]], repr=False)
    local: Weights = field(default_factory=dict[str, NDArray[np.float32]], repr=False)

    def write(self, path: Path) -> None:
        """Write to ``path``, whole or not at all, then forget every earlier round."""
        parts = {"weights": self.weights, "control": self.control, "local": self.local}
        arrays = {f"{part}/{n}": value for part, some in parts.items() for n, value in some.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(arrays, metadata={"run_id": self.run_id}))
        for old in path.parent.glob(f"*{_SUFFIX}"):
            if old != path:
                old.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Kept:
        """The inverse of `write`.

        Raises:
            LedgerError: if the file is damaged.
        """
        parts: dict[str, Weights] = {"weights": {}, "control": {}, "local": {}}
        try:
            with safe_open(str(path), framework="numpy") as file:
                run_id = (file.metadata() or {})["run_id"]
                for key in list(file.keys()):
                    part, _, name = key.partition("/")
                    parts[part][name] = file.get_tensor(key)
        except (SafetensorError, KeyError) as error:
            raise LedgerError("the stored reply cannot be read") from error
        return cls(run_id=run_id, **parts)

    @classmethod
    def last_in(cls, folder: Path, run_id: str) -> Kept | None:
        """Of the last round of this run that the site took part in, if there was one.

        Raises:
            LedgerError: if the file is damaged.
        """
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            kept = cls.read(path)
            if kept.run_id == run_id:
                return kept
        return None

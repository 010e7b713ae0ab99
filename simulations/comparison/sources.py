"""What went into the models beside patients: synthetic images and initial weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simulations.comparison.measured import Measured

_KEPT = ("kind", "reason", "epsilon", "studies", "source")


def sources(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """Each once, with the cells that used it.

    ``what``, ``kind``, ``reason``, ``epsilon`` (infinite is ``None``), ``studies``, ``source``,
    ``concerns_these_patients`` and ``used_by`` (arms and uses of synthetic images).
    """
    told: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in found:
        cell = run.trial.cell
        by = cell.arm if cell.augment == "none" else f"{cell.arm} with {cell.augment}"
        for one in _of(run.result):
            key = tuple(map(str, one.values()))
            users = told.setdefault(key, one | {"used_by": []})["used_by"]
            if by not in users:
                users.append(by)
    return list(told.values())


def _of(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    synthetic = result.get("synthetic")
    if synthetic is not None:
        yield _told("synthetic images", synthetic)
    for weights in result.get("initial_weights") or ():
        yield _told("initial weights", weights)
    model = (result.get("config") or {}).get("model") or {}
    if model.get("weights") and model.get("weights_public"):
        yield {
            "what": "initial weights",
            "kind": "public",
            "reason": model["weights_public"],
            "epsilon": 0.0,
            "studies": [],
            "source": model["weights"],
            "concerns_these_patients": False,
        }


def _told(what: str, used: Mapping[str, Any]) -> dict[str, Any]:
    made = used["provenance"]
    return {
        "what": what,
        **{name: made[name] for name in _KEPT},
        "concerns_these_patients": used["concerns_these_patients"],
    }

"""Ray actors that stay after the command that started them."""

from __future__ import annotations

from typing import Any, cast

import ray

# One that does not answer in this time has something to do.
IDLE_SECONDS = 1.0


def end_idle_others(prefix: str, *, but: str) -> None:
    """End those of another shape or of older code, which would hold what new ones need.

    Args:
        prefix: of the names that are looked at.
        but: prefix of the names that stay.
    """
    names = cast("list[str]", ray.util.list_named_actors())
    others = [ray.get_actor(n) for n in names if n.startswith(prefix) and not n.startswith(but)]
    asked: dict[Any, Any] = {actor.ready.remote(): actor for actor in others}
    if asked:
        idle, _ = ray.wait(list(asked), num_returns=len(asked), timeout=IDLE_SECONDS)
        for task in idle:
            ray.kill(asked[task])

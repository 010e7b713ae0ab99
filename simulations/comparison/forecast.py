"""How long the trials that are left will take."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence


class Forecast:
    """From how long finished trials took: those of the same kind, else all.

    >>> forecast = Forecast({"a": "local", "b": "local", "c": "federated"}, num_workers=1)
    >>> forecast.left([])
    >>> forecast.took("a", 10.0)
    >>> forecast.left(["a"])
    20.0
    """

    def __init__(self, kinds: Mapping[str, Hashable], *, num_workers: int) -> None:
        """Trials by name, with what their time goes by.

        Args:
            kinds: of every trial that is to run.
            num_workers: how many run side by side.
        """
        self._kinds = dict(kinds)
        self._num_workers = num_workers
        self._seconds: dict[Hashable, list[float]] = {}

    def took(self, name: str, seconds: float) -> None:
        """Take in that a trial is done."""
        self._seconds.setdefault(self._kinds[name], []).append(seconds)

    def left(self, done: Sequence[str], running: Mapping[str, float] | None = None) -> float | None:
        """Seconds until all are done; ``None`` before the first is.

        Args:
            done: names of trials that have ended.
            running: since how many seconds others have been running.
        """
        every = [seconds for some in self._seconds.values() for seconds in some]
        if not every:
            return None
        since = running or {}
        rest = 0.0
        for name, kind in self._kinds.items():
            if name not in done:
                some = self._seconds.get(kind, every)
                rest += max(0.0, sum(some) / len(some) - since.get(name, 0.0))
        return rest / self._num_workers

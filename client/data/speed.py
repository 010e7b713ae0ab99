"""How fast images are decoded, and how fast they come out of a cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.cache import ImageCache
from client.data.study import Study


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How long ``num_images`` took: on the clock, and of this process's work."""

    name: str
    num_images: int
    seconds: float
    processor_seconds: float

    @property
    def images_per_second(self) -> float:
        """By the clock."""
        return self.num_images / self.seconds


def bare_decoding(paths: list[Path]) -> Speed:
    """``pydicom.dcmread(path).pixel_array``, with no window, check or limit: the yardstick."""
    import pydicom

    def decode() -> None:
        for path in paths:
            _ = pydicom.dcmread(path).pixel_array

    return _timed("pydicom.dcmread(...).pixel_array", len(paths), decode)


def decoding(study: Study) -> Speed:
    """The study's own reader: header checked, limits kept, window applied, scaled to [0, 1]."""

    def decode() -> None:
        for record in study.records:
            study.read(record)

    return _timed("decode and window", len(study.records), decode)


def first_epoch(study: Study, cache: ImageCache, batch: int) -> Speed:
    """An epoch on an empty cache: decode, resize, write, flush, verify, read once."""

    def epoch() -> None:
        _read_epoch(cache.images(study, study.records), batch, seed=0)

    return _timed("first epoch, filling the cache", len(study.records), epoch)


def reopened(study: Study, cache: ImageCache) -> Speed:
    """Opening a full cache: a stat of each file, and the checksum over all images."""
    return _timed(
        "open a full cache, verified",
        len(study.records),
        lambda: cache.images(study, study.records),
    )


def cached_epochs(study: Study, cache: ImageCache, batch: int, times: int) -> Speed:
    """Epochs in random order out of an open cache, batches made as training makes them."""
    images = cache.images(study, study.records)

    def epochs() -> None:
        for seed in range(times):
            _read_epoch(images, batch, seed)

    return _timed("cached epoch", times * len(images), epochs)


def batches(
    images: npt.NDArray[np.float32], batch: int, seed: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Batches in random order, copied out of the map and scaled to [-1, 1]."""
    order = np.random.default_rng(seed).permutation(len(images))
    for start in range(0, len(order), batch):
        yield images[order[start : start + batch]] * np.float32(2) - np.float32(1)


def _read_epoch(images: npt.NDArray[np.float32], batch: int, seed: int) -> None:
    for _ in batches(images, batch, seed):
        pass


def _timed(name: str, num_images: int, action: Callable[[], object]) -> Speed:
    clock, work = time.perf_counter(), time.process_time()
    action()
    return Speed(
        name=name,
        num_images=num_images,
        seconds=time.perf_counter() - clock,
        processor_seconds=time.process_time() - work,
    )

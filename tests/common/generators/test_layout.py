"""Channels of the paper, and of what is smaller."""

from __future__ import annotations

import pytest

from common.errors import UsageError
from common.generators.layout import channels


def test_every_size_halves_down_to_four_pixels() -> None:
    for size in (32, 64, 128):
        assert size >> len(channels(size, 1.0)) == 4


@pytest.mark.parametrize("size", [16, 48, 100, 256])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"image_size={size}"):
        channels(size, 1.0)

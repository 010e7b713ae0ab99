from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.speed import Speed, batches


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 100))
def test_an_epoch_holds_every_image_once(count: int, batch: int, seed: int) -> None:
    images = np.arange(count, dtype=np.float32)[:, None, None, None] / 64
    seen = list(batches(images, batch, seed))
    assert max(map(len, seen)) <= batch
    values = np.concatenate(seen).ravel()
    np.testing.assert_array_equal(np.sort((values + 1) / 2), images.ravel())


def test_speed_is_by_the_clock() -> None:
    speed = Speed(name="x", num_images=10, seconds=2.0, processor_seconds=1.0)
    assert speed.images_per_second == 5.0

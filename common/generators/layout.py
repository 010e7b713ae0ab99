"""The sides and channels that generator and discriminator share."""

from __future__ import annotations

from common.errors import UsageError

_CHANNELS = (64, 128, 256, 512, 1024)

# Side of the smallest maps: 4, so an image of 4 * 2^n pixels has n layers that halve it.
_NUM_LAYERS = {32: 3, 64: 4, 128: 5}


def channels(image_size: int, width: float) -> tuple[int, ...]:
    """Channels of the maps of side S / 2, S / 4, ..., 4.

    Raises:
        UsageError: for an ``image_size`` other than 32, 64 and 128.

    >>> channels(128, 1.0)
    (64, 128, 256, 512, 1024)
    >>> channels(32, 0.25)
    (16, 32, 64)
    """
    if image_size not in _NUM_LAYERS:
        sizes = ", ".join(map(str, _NUM_LAYERS))
        raise UsageError(f"image_size={image_size}: a conditional GAN makes images of {sizes}")
    return tuple(max(1, round(width * full)) for full in _CHANNELS[: _NUM_LAYERS[image_size]])

"""A site's control variate (SCAFFOLD; Karimireddy et al. 2020, arXiv 1910.06378, option II).

It is a function of what was sent and what is released, so it is post-processing.
"""

from __future__ import annotations

import numpy as np

from common.messages import TrainRequest, Weights


def shift(request: TrainRequest, own: Weights) -> Weights:
    """What is added to each gradient: c - c_i; both begin as zero.

    Args:
        request: carries c.
        own: c_i, as the site kept it.

    Raises:
        ValueError: if the control variate that was sent does not fit the weights.
    """
    if not request.recipe.controlled:
        return {}
    found: Weights = {}
    for name, value in request.weights.items():
        zero = np.zeros_like(value)
        sent = request.control.get(name, zero) if request.control else zero
        if sent.shape != value.shape or not np.isfinite(sent).all():
            raise ValueError(f"{name}: the control variate does not fit")
        found[name] = sent - own.get(name, zero)
    return found


def following(request: TrainRequest, released: Weights, shifted: Weights) -> Weights:
    """c_i+ = c_i - c + (x - y_i) / (K lr): of what was sent and what is released, nothing else.

    Empty where the request asks for no control variate.
    """
    recipe = request.recipe
    if not recipe.controlled:
        return {}
    length = np.float32(recipe.steps * recipe.learning_rate)
    return {
        name: ((request.weights[name] - value) / length - shifted[name]).astype(np.float32)
        for name, value in released.items()
    }

"""Messages: recipes are bounded before anything acts on them, and arrays stay out of logs."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import EngineName
from common.messages import Recipe, Status, TrainReply, TrainRequest

GOOD: dict[str, Any] = {
    "mechanism": "dp_sgd",
    "unit": "patient",
    "accountant": "pld",
    "delta": 1e-5,
    "sampling_rate": 0.25,
    "noise_multiplier": 1.1,
    "steps": 5,
    "max_grad_norm": 1.0,
    "images_per_patient": 4,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "physical_batch": 32,
    "clipping": "flat",
    "engine": "bookkeeping",
    "precision": "fp32",
    "augmentation_multiplicity": 1,
    "synthetic_ratio": 0.0,
    "synthetic_as_patients": False,
    "momentum": 0.9,
    "proximal_mu": 0.0,
    "controlled": False,
    "personal": "none",
}


@given(
    st.fixed_dictionaries(
        {
            "mechanism": st.sampled_from(["dp_sgd", "none"]),
            "unit": st.sampled_from(["patient", "image"]),
            "delta": st.floats(1e-12, 0.5),
            "sampling_rate": st.floats(1e-6, 1.0),
            "noise_multiplier": st.floats(1e-3, 100),
            "steps": st.integers(1, 10**6),
            "max_grad_norm": st.floats(1e-3, 1e3),
            "clipping": st.sampled_from(["flat", "automatic", "per_layer"]),
            "engine": st.sampled_from([name.value for name in EngineName]),
            "precision": st.sampled_from(["fp32", "bf16"]),
            "augmentation_multiplicity": st.integers(1, 64),
            "momentum": st.floats(0, 0.99),
            "proximal_mu": st.floats(0, 100),
            "personal": st.sampled_from(["none", "head", "norms"]),
        }
    )
)
def test_a_recipe_survives_json(changes: dict[str, Any]) -> None:
    recipe = Recipe(**{**GOOD, **changes})
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.private == (changes["mechanism"] == "dp_sgd")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mechanism", "gdp"),
        ("unit", "hospital"),
        ("delta", 0.0),
        ("delta", 1.0),
        ("delta", math.nan),
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.0001),
        ("sampling_rate", math.nan),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", math.nan),
        ("steps", 0),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", math.inf),
        ("max_grad_norm", 1e-44),
        ("max_grad_norm", 1e30),
        ("learning_rate", 1e36),
        ("images_per_patient", 0),
        ("optimizer", "lion"),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("physical_batch", 0),
        ("clipping", "adaptive"),
        ("clipping", ""),
        ("engine", "opacus"),
        ("precision", "fp16"),
        ("momentum", 1.0),
        ("momentum", math.nan),
        ("proximal_mu", -0.1),
        ("proximal_mu", math.inf),
        ("personal", "everything"),
        ("controlled", True),  # Adam and momentum are not what SCAFFOLD corrects
        ("augmentation_multiplicity", 0),
    ],
)
def test_a_recipe_out_of_bounds_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"out of bounds|needs noise"):
        Recipe(**{**GOOD, name: value})
    with pytest.raises(ValueError, match=r"out of bounds|needs noise"):
        Recipe.from_dict({**GOOD, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 2.5),
        ("steps", True),
        ("steps", "5"),
        ("steps", None),
        ("images_per_patient", 1.5),
        ("physical_batch", 1e9),
        ("delta", "1e-5"),
        ("learning_rate", [1]),
        ("accountant", 7),
        ("mechanism", ["dp_sgd"]),
        ("clipping", 1),
        ("engine", None),
        ("augmentation_multiplicity", 2.0),
        ("augmentation_multiplicity", True),
    ],
)
def test_a_recipe_field_of_the_wrong_kind_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"wrong kind: .*{name}"):
        Recipe.from_dict({**GOOD, name: value})


def test_a_recipe_with_a_field_missing_or_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fields differ: \['steps'\]"):
        Recipe.from_dict({name: value for name, value in GOOD.items() if name != "steps"})
    with pytest.raises(ValueError, match=r"fields differ: \['noise'\]"):
        Recipe.from_dict({**GOOD, "noise": 0})


def test_only_a_recipe_without_privacy_may_do_without_noise() -> None:
    recipe = Recipe.from_dict({**GOOD, "mechanism": "none", "noise_multiplier": 0})
    assert not recipe.private


def _request(run_id: str, number: int) -> TrainRequest:
    return TrainRequest(
        run_id=run_id,
        round=number,
        recipe=Recipe(**GOOD),
        frozen_sha256="",
        weights={"head.weight": np.full(3, 0.123456, np.float32)},
    )


@given(st.text(max_size=5), st.integers(0, 99), st.text(max_size=5), st.integers(0, 99))
def test_requests_share_a_name_exactly_where_run_and_round_agree(
    run: str, number: int, other_run: str, other_number: int
) -> None:
    same = _request(run, number).request_id == _request(other_run, other_number).request_id
    assert same == ((run, number) == (other_run, other_number))


def test_weights_are_not_in_a_repr() -> None:
    request = _request("run", 1)
    reply = TrainReply(
        site="hospital-1", status=Status.trained, num_patients=3, weights=request.weights
    )
    for message in (request, reply):
        assert "0.123" not in repr(message)
        assert "weights" not in repr(message)

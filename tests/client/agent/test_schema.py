"""Messages of the socket: what was sent is what is read, and nothing else is read at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from client.agent import schema
from common.messages import Reason, SiteDescription, Status, TrainReply, TrainRequest

BUNDLE = "cd" * 32


@pytest.fixture
def train(request_of: Callable[..., TrainRequest]) -> TrainRequest:
    request = request_of(3)
    return replace(request, control={n: value + 1 for n, value in request.weights.items()})


def parts(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return json.loads(header["__metadata__"]["fedward"]), header


def changed(content: bytes, **fields: Any) -> bytes:
    """The message with some fields of its text changed (left out if ``...``), arrays dropped."""
    body, _ = parts(content)
    body = {n: v for n, v in {**body, **fields}.items() if v is not ...}
    return save({"weights/a": np.ones(2, np.float32)}, {"fedward": json.dumps(body)})


def test_a_request_comes_back_as_it_was(train: TrainRequest) -> None:
    question = schema.read_question(schema.request_bytes(train, BUNDLE), "train")
    found = question.train
    assert question.bundle == BUNDLE
    assert found is not None
    assert (found.request_id, found.recipe) == (train.request_id, train.recipe)
    for name, value in train.weights.items():
        assert np.array_equal(found.weights[name], value)
        assert np.array_equal(found.control[name], train.control[name])


@pytest.mark.parametrize("reason", [None, *Reason])
def test_a_reply_comes_back_as_it_was(reason: Reason | None) -> None:
    reply = TrainReply(
        site="hospital-1",
        status=Status.trained if reason is None else Status.refused,
        num_patients=6,
        reason=reason,
        spend={"epsilon": None, "length": 3},
        weights={"a": np.arange(3, dtype=np.float32)} if reason is None else None,
    )
    found = schema.read_reply(schema.reply_bytes(reply))
    assert replace(found, weights=None) == replace(reply, weights=None)
    assert (found.weights is None) == (reply.weights is None)


def test_a_description_comes_back_as_it_was() -> None:
    about = SiteDescription(site="hospital-1", num_patients=12)
    assert schema.read_description(schema.description_bytes(about)) == about
    assert schema.read_question(schema.describe_bytes(BUNDLE), "describe").bundle == BUNDLE


@pytest.mark.parametrize(
    "fields",
    [
        {"schema": "fedward.agent/2"},
        {"kind": "describe"},
        {"bundle": "x"},
        {"bundle": "AB" * 32},
        {"run_id": "a:b"},
        {"run_id": "../x\n"},
        {"run_id": "x" * 129},
        {"round": 0},
        {"round": True},
        {"round": 1.5},
        {"frozen_sha256": 7},
        {"recipe": []},
        {"request_id": "run/1/train"},
        {"round": ...},
    ],
)
def test_a_field_that_is_not_as_the_schema_has_it_is_refused(
    train: TrainRequest, fields: dict[str, Any]
) -> None:
    content = schema.request_bytes(train, BUNDLE)
    assert schema.read_question(changed(content), "train")
    with pytest.raises(ValueError, match=r".+"):
        schema.read_question(changed(content, **fields), "train")


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 10**7},
        {"steps": 2.0},
        {"physical_batch": 10**9},
        {"augmentation_multiplicity": 10**6},
        {"delta": 2},
        {"noise_multiplier": 0},
        {"noise_multiplier": float("inf")},
        {"learning_rate": float("nan")},
        {"mechanism": "trust me"},
        {"extra": 1},
    ],
)
def test_a_recipe_out_of_bounds_is_refused(train: TrainRequest, fields: dict[str, Any]) -> None:
    recipe = {**train.recipe.to_dict(), **fields}
    content = changed(schema.request_bytes(train, BUNDLE), recipe=recipe)
    with pytest.raises(ValueError, match=r".+"):
        schema.read_question(content, "train")


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"weights/a": np.ones(2, np.float64)},
        {"weights/a": np.ones(2, np.int64)},
        {"weights/a": np.array([np.nan], np.float32)},
        {"weights/a": np.array([-np.inf], np.float32)},
        {"a": np.ones(2, np.float32)},
        {"weights/": np.ones(2, np.float32)},
        {"other/a": np.ones(2, np.float32)},
    ],
)
def test_arrays_that_are_not_as_the_schema_has_them_are_refused(
    train: TrainRequest, arrays: dict[str, Any]
) -> None:
    body, _ = parts(schema.request_bytes(train, BUNDLE))
    with pytest.raises(ValueError, match=r".+"):
        schema.read_question(save(arrays, {"fedward": json.dumps(body)}), "train")


def test_a_header_that_lies_about_its_length_is_refused(train: TrainRequest) -> None:
    content = schema.request_bytes(train, BUNDLE)
    for size in (0, 2**63, len(content), schema.TEXT_BYTES + 1):
        with pytest.raises(ValueError, match=r".+"):
            schema.read_question(size.to_bytes(8, "little") + content[8:], "train")


@given(place=st.integers(0, 4000), value=st.integers(0, 255), cut=st.integers(0, 60))
def test_damage_is_read_as_a_message_or_refused(place: int, value: int, cut: int) -> None:
    content = bytearray(schema.describe_bytes(BUNDLE))
    content[place % len(content)] = value
    try:
        found = schema.read_question(bytes(content[: len(content) - cut]), "describe")
    except ValueError:
        return
    assert len(found.bundle) == 64


def test_the_bound_of_a_body_leaves_room_for_an_honest_one(train: TrainRequest) -> None:
    assert len(schema.request_bytes(train, BUNDLE)) < schema.most_bytes(train.weights)

"""Messages about secure sums at the agent's socket: read as they were sent, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from client.agent import schema
from common.messages import Reason
from common.secure_aggregation.conversation import Question, SecureAnswer, Step

BUNDLE = "cd" * 32


def question_of(town: Any, step: Step, **changes: Any) -> Question:
    request = town.request()
    question = Question(step=step, terms=town.terms(request), mechanism=town.mechanism())
    return replace(question, body=b"body", **changes)


def content_of(town: Any, step: Step, **changes: Any) -> bytes:
    request = town.request() if step is Step.masked else None
    return schema.secure_bytes(question_of(town, step, **changes).to_bytes(), request, BUNDLE)


@pytest.mark.parametrize("step", list(Step))
def test_a_question_comes_back_as_it_was(town: Any, step: Step) -> None:
    found = schema.read_question(content_of(town, step), "secure")
    assert found.bundle == BUNDLE
    assert found.sums == question_of(town, step)
    assert found.data == question_of(town, step).to_bytes()
    assert (found.train is None) is (step is not Step.masked)
    if found.train is not None:
        sent = town.request()
        assert (found.train.request_id, found.train.recipe) == (sent.request_id, sent.recipe)
        for name, value in sent.weights.items():
            assert np.array_equal(found.train.weights[name], value)


def test_an_answer_comes_back_as_it_was() -> None:
    for reason in (None, Reason.weak_trust):
        said = SecureAnswer(site="hospital-1", num_patients=6, reason=reason, body=b"x").to_bytes()
        assert schema.read_secure_reply(schema.secure_reply_bytes(said)) == said


def remade(content: bytes, arrays: dict[str, Any], **fields: Any) -> bytes:
    """The message with other arrays beside its own (left out if none), and other fields."""
    size = int.from_bytes(content[:8], "little")
    body = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["fedward"])
    body = {n: v for n, v in {**body, **fields}.items() if v is not ...}
    held = {n: v for n, v in {**load(content), **arrays}.items() if v is not None}
    return save(held, {"fedward": json.dumps(body)})


@pytest.mark.parametrize(
    ("arrays", "fields"),
    [
        ({"secure": None}, {}),
        ({"secure": np.zeros(0, np.uint8)}, {}),
        ({"secure": np.zeros(40, np.uint8)}, {}),
        ({"secure": np.zeros(40, np.float32)}, {}),
        ({"weights/a": np.zeros(3, np.float32)}, {}),
        ({"other": np.zeros(3, np.uint8)}, {}),
        ({}, {"kind": "train"}),
        ({}, {"kind": "describe"}),
        ({}, {"bundle": "CD" * 32}),
        ({}, {"run_id": "run"}),
        ({}, {"more": 1}),
        ({}, {"bundle": ...}),
    ],
)
def test_a_question_that_is_not_whole_is_refused(
    town: Any, arrays: dict[str, Any], fields: dict[str, Any]
) -> None:
    content = content_of(town, Step.keys)
    assert schema.read_question(remade(content, {}), "secure").data
    with pytest.raises(ValueError, match=r".+"):
        schema.read_question(remade(content, arrays, **fields), "secure")


@pytest.mark.parametrize("kind", ["describe", "train"])
def test_no_other_question_carries_bytes_of_a_sum(town: Any, kind: str) -> None:
    plain = (
        schema.describe_bytes(BUNDLE)
        if kind == "describe"
        else schema.request_bytes(town.request(), BUNDLE)
    )
    assert schema.read_question(remade(plain, {}), kind).sums is None
    data = np.frombuffer(question_of(town, Step.keys).to_bytes(), np.uint8)
    for array in (data, np.zeros(0, np.uint8)):
        with pytest.raises(ValueError, match=r".+"):
            schema.read_question(remade(plain, {"secure": array}), kind)


def test_a_masked_vector_is_asked_for_with_model_and_recipe_or_not_at_all(town: Any) -> None:
    data = question_of(town, Step.masked).to_bytes()
    with pytest.raises(ValueError, match="not a question"):
        schema.read_question(schema.secure_bytes(data, None, BUNDLE), "secure")
    data = question_of(town, Step.shares).to_bytes()
    with pytest.raises(ValueError, match="not a question"):
        schema.read_question(schema.secure_bytes(data, town.request(), BUNDLE), "secure")


@pytest.mark.parametrize(
    "changes", [{"clip": 1 << 40}, {"share_std": 1}, {"num_shares": 0}, {"clip": 10**400}]
)
def test_a_mechanism_that_cannot_be_is_refused(town: Any, changes: dict[str, int]) -> None:
    mechanism = replace(town.mechanism(), **changes)
    with pytest.raises(ValueError, match=r".+"):
        schema.read_question(content_of(town, Step.masked, mechanism=mechanism), "secure")


def test_a_runs_name_is_text_that_a_log_may_hold(town: Any) -> None:
    terms = question_of(town, Step.keys).terms
    for changes in ({"run_id": "a b\n"}, {"run_id": "x" * 129}, {"round": 10**7}):
        with pytest.raises(ValueError, match=r"run_id|round"):
            schema.read_question(
                content_of(town, Step.keys, terms=replace(terms, **changes)), "secure"
            )

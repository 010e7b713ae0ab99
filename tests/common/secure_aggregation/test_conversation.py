from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from common import wire
from common.messages import Reason, Recipe, TrainRequest
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.conversation import Question, SecureAnswer, Step
from common.secure_aggregation.mechanism import Mechanism, Parties
from common.secure_aggregation.task import check_task, terms_of

MECHANISM = Mechanism(clip=1024, share_std=2048, modulus_bits=32, num_weights=7, num_shares=3)
RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="pld",
    delta=1e-5,
    sampling_rate=0.5,
    noise_multiplier=3.0,
    steps=1,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="sgd",
    learning_rate=0.5,
    physical_batch=8,
)


def _request(**changes: Any) -> TrainRequest:
    weights = {"w": np.arange(7, dtype=np.float32)}
    recipe = replace(RECIPE, **changes)
    return TrainRequest(run_id="r", round=1, recipe=recipe, frozen_sha256="f", weights=weights)


@settings(deadline=None)
@given(body=st.binary(max_size=100), step=st.sampled_from(Step))
def test_questions_and_answers_come_back(federation: Any, body: bytes, step: Step) -> None:
    terms = federation.terms_of(federation.roster_of(3))
    question = Question(step=step, terms=terms, mechanism=MECHANISM, body=body)
    assert Question.from_bytes(question.to_bytes()) == question
    answer = SecureAnswer(site="a", num_patients=3, reason=Reason.insecure, body=body)
    assert SecureAnswer.from_bytes(answer.to_bytes()) == answer
    with pytest.raises(Aborted):
        Question.from_bytes(answer.to_bytes())
    with pytest.raises(Aborted):
        SecureAnswer.from_bytes(question.to_bytes())


@settings(deadline=None)
@given(body=st.binary(max_size=100))
def test_bytes_travel_with_and_without_a_request(body: bytes) -> None:
    assert wire.read_secure(wire.secure_content(body)) == (body, None)
    data, request = wire.read_secure(wire.secure_content(body, _request()))
    assert data == body
    assert request is not None
    assert request.recipe == RECIPE
    assert (request.weights["w"] == _request().weights["w"]).all()


@pytest.mark.parametrize(
    "array",
    [
        Array(np.zeros(3, dtype=np.float32)),
        Array(np.zeros((2, 2), dtype=np.uint8)),
        Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"\x80\x04N."),
    ],
)
def test_arrays_of_anything_else_are_refused(array: Array) -> None:
    content = RecordDict({"secure": ArrayRecord({"secure": array})})
    with pytest.raises(ValueError, match="does not fit"):
        wire.read_secure(content)
    with pytest.raises(ValueError, match="does not fit"):
        wire.read_secure(RecordDict())


def test_a_site_takes_only_terms_of_the_very_request(federation: Any) -> None:
    roster, parties = federation.roster_of(3), Parties(num_sites=3)
    request = _request()
    terms = terms_of(request, MECHANISM, parties, roster)
    check_task(request, MECHANISM, terms, roster)
    others: list[tuple[TrainRequest, Mechanism]] = [
        (_request(learning_rate=1.0), MECHANISM),
        (replace(request, weights={"w": np.zeros(7, np.float32)}), MECHANISM),
        (replace(request, weights={"v": request.weights["w"]}), MECHANISM),
        (replace(request, round=2), MECHANISM),
        (replace(request, frozen_sha256="g"), MECHANISM),
        (request, replace(MECHANISM, share_std=4096)),
    ]
    for other, mechanism in others:
        with pytest.raises(Aborted, match="not those of its recipe"):
            check_task(other, mechanism, terms, roster)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 2},
        {"optimizer": "adam"},
        {"mechanism": "none"},
        {"proximal_mu": 0.1},
        {"personal": "head"},
        {"synthetic_ratio": 1.0},
        {"noise_multiplier": 30.0},
    ],
)
def test_a_site_refuses_recipes_that_a_sum_cannot_hold(
    federation: Any, changes: dict[str, Any]
) -> None:
    roster = federation.roster_of(3)
    request = _request(**changes)
    terms = terms_of(request, MECHANISM, Parties(num_sites=3), roster)
    with pytest.raises(Aborted):
        check_task(request, MECHANISM, terms, roster)


def test_no_fewer_shares_than_the_terms_count_on(federation: Any) -> None:
    roster = federation.roster_of(3)
    mechanism = replace(MECHANISM, num_shares=9)
    terms = terms_of(_request(), mechanism, Parties(num_sites=3), roster)
    with pytest.raises(Aborted, match="not those of its recipe"):
        check_task(_request(), mechanism, terms, roster)

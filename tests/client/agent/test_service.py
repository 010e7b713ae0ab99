"""The agent behind a real socket: what a server's code may try there, and what comes of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from client.agent import schema, service
from client.agent.forwarder import AgentFailed, AgentSite
from common import models
from common.errors import UsageError
from common.messages import Reason, SiteDescription, Status, TrainReply, TrainRequest
from common.privacy.budget import Budget

RequestOf = Callable[..., TrainRequest]
PATIENT = "PATIENT-3-MEIER"


def post(place: Any, path: str, content: Any, **headers: str) -> httpx.Response:
    transport = httpx.HTTPTransport(uds=str(place.socket))
    with httpx.Client(transport=transport, timeout=60, trust_env=False) as client:
        return client.post(f"http://agent{path}", content=content, headers=headers)


def assert_refused(reply: TrainReply, reason: Reason) -> None:
    assert (reply.status, reply.reason, reply.weights) == (Status.refused, reason, None)


def test_a_round_and_the_next_one_through_the_socket(place: Any, request_of: RequestOf) -> None:
    with place.served() as site:
        assert site.describe() == SiteDescription(site="hospital-1", num_patients=6)
        first, second = site.train(request_of(1)), site.train(request_of(2))
    assert first.status is second.status is Status.trained
    assert first.spend is not None
    assert second.spend is not None
    assert 0 < first.spend["epsilon"] < second.spend["epsilon"]
    assert place.requests_charged() == 2
    described, one, two = place.rows("answered")
    assert (described["decision"], one["decision"]) == ("described", "trained")
    assert two["ledger"]["head"] == second.spend["head"]
    assert second.weights is not None
    moved = [second.weights[n] - value for n, value in request_of().weights.items()]
    norm = np.sqrt(sum(float((change.astype(np.float64) ** 2).sum()) for change in moved))
    assert two["update_norm"] == pytest.approx(norm)
    asked = place.rows("asked")[2]
    assert (asked["run"], asked["round"], asked["uid"]) == ("run", 2, os.getuid())
    assert asked["event"]["noise_multiplier"] == 2.0


def test_a_repeated_request_gets_the_stored_reply_from_another_agent_too(
    place: Any, request_of: RequestOf
) -> None:
    with place.served() as site:
        first = site.train(request_of())
    with place.served() as site:
        again = site.train(request_of())
    assert first.weights is not None
    assert again.weights is not None
    assert models.weights_sha256(first.weights) == models.weights_sha256(again.weights)
    assert place.requests_charged() == 1


def test_an_old_id_with_other_work_is_refused_and_charges_nothing(
    place: Any, request_of: RequestOf
) -> None:
    with place.served() as site:
        assert site.train(request_of(steps=2)).status is Status.trained
        assert_refused(site.train(request_of(steps=3)), Reason.ledger_unavailable)
    assert place.requests_charged() == 1


def test_a_replay_of_a_round_that_is_over_is_refused(place: Any, request_of: RequestOf) -> None:
    with place.served() as site:
        for number in (1, 2):
            assert site.train(request_of(number)).status is Status.trained
        assert_refused(site.train(request_of(1)), Reason.bad_request)
    assert place.requests_charged() == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise_multiplier": 0.99}, Reason.weak_noise),
        ({"mechanism": "none", "noise_multiplier": 0.0}, Reason.weak_noise),
        ({"steps": 11}, Reason.too_many_steps),
        ({"sampling_rate": 0.51}, Reason.high_sampling_rate),
        ({"sampling_rate": 0.3}, Reason.small_batch),
    ],
)
def test_a_recipe_weaker_than_the_policy_is_refused_before_anything_is_charged(
    place: Any, request_of: RequestOf, changes: dict[str, Any], reason: Reason
) -> None:
    with place.served() as site:
        assert_refused(site.train(request_of(**changes)), reason)
    assert place.requests_charged() == 0


def test_the_policys_cap_holds_whatever_the_server_believes(
    place: Any, request_of: RequestOf, policy_text: str
) -> None:
    with place.served() as site:
        spend = site.train(request_of(1)).spend
        assert spend is not None
        place.write_policy(policy_text.replace("epsilon: 50.0", f"epsilon: {spend['epsilon']}"))
        assert_refused(site.train(request_of(2)), Reason.budget_exceeded)
        place.write_policy(policy_text)
        assert site.train(request_of(2)).status is Status.trained
    assert len(place.rows("policy_changed")) == 3


def test_a_claimed_bundle_that_is_not_approved_gets_nothing(
    place: Any, request_of: RequestOf
) -> None:
    with place.served():
        stranger = AgentSite(socket=place.socket, bundle="ab" * 32)
        assert_refused(stranger.train(request_of()), Reason.unapproved_code)
        with pytest.raises(AgentFailed, match="unapproved_code"):
            stranger.describe()
        place.approvals.revoke(place.bundle, place.audit)
        assert_refused(
            AgentSite(socket=place.socket, bundle=place.bundle).train(request_of()),
            Reason.unapproved_code,
        )
    assert place.requests_charged() == 0


def test_a_huge_body_is_not_read(place: Any) -> None:
    sent: list[int] = []

    def endless() -> Any:
        for _ in range(200):  # far more than the bound; a failure must not go on for ever
            sent.append(1_000_000)
            yield bytes(1_000_000)

    with place.served():
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(place.socket))
            raw.sendall(
                b"POST /v1/train HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n"
            )
            assert raw.recv(100).startswith(b"HTTP/1.1 413 ")
        with contextlib.suppress(httpx.WriteError):  # hanging up is as good an answer
            assert post(place, "/v1/train", endless()).status_code == 413
    assert sum(sent) < 20_000_000
    assert not place.rows("asked")


def test_an_array_of_another_shape_than_the_models_is_refused(
    place: Any, request_of: RequestOf
) -> None:
    request = request_of()
    name = min(request.weights)
    request.weights[name] = np.zeros((3, 3), np.float32)
    with place.served() as site:
        assert_refused(site.train(request), Reason.model_mismatch)
    assert place.requests_charged() == 0


def test_weights_that_are_not_numbers_are_refused_before_they_cost(
    place: Any, request_of: RequestOf
) -> None:
    request = request_of()
    name = min(request.weights)
    request.weights[name] = np.full_like(request.weights[name], np.nan)
    with place.served() as site:
        assert_refused(site.train(request), Reason.bad_request)
    assert place.requests_charged() == 0


@pytest.mark.parametrize("path", ["/", "/v1", "/docs", "/openapi.json", "/v1/status", "/v2/train"])
def test_there_are_no_other_doors(place: Any, path: str) -> None:
    with place.served():
        assert post(place, path, b"").status_code == 404


@given(
    body=st.binary(max_size=400)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["schema", "kind", "bundle", "run_id", "round", "recipe", "x"]),
                inner,
                max_size=5,
            )
        ),
        max_leaves=8,
    ).map(lambda value: save({"weights/a": np.ones(2, np.float32)}, {"fedward": json.dumps(value)}))
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_does_not_fit_the_schema_is_refused_by_code(open_place: Any, body: bytes) -> None:
    answer = post(open_place, "/v1/train", body)
    assert answer.status_code == 400
    assert_refused(schema.read_reply(answer.content), Reason.bad_request)


@pytest.fixture
def open_place(place: Any) -> Any:
    with place.served():
        yield place


class PlantedSite:
    """Fails with a patient's name in every part of the exception."""

    def describe(self) -> SiteDescription:
        return SiteDescription(site="hospital-1", num_patients=6)

    def hold_to(self, budget: Budget) -> None:
        del budget

    def train(self, request: TrainRequest) -> TrainReply:
        raise FileNotFoundError(2, f"no scan of {PATIENT}", f"/data/{PATIENT}.dcm") from KeyError(
            PATIENT
        )


def test_an_exception_about_a_patient_stays_in_the_sites_own_log(
    place: Any, request_of: RequestOf, caplog: pytest.LogCaptureFixture
) -> None:
    with place.served(PlantedSite()) as site:
        content = schema.request_bytes(request_of(), place.bundle)
        answer = post(place, "/v1/train", content)
        with pytest.raises(AgentFailed, match="HTTP 500 internal_error"):
            site.train(request_of())
    said = answer.content + repr(answer.headers).encode()
    assert answer.status_code == 500
    assert PATIENT.encode() not in said
    assert b"MEIER" not in b"".join(p.read_bytes() for p in place.folder.glob("audit*"))
    assert [row["reason"] for row in place.rows("answered")] == ["internal_error"] * 2
    assert PATIENT in caplog.text


def test_the_socket_is_for_the_agents_user_and_group(place: Any) -> None:
    with place.served():
        assert stat.S_IMODE(place.socket.stat().st_mode) == 0o660


def test_the_socket_of_a_killed_agent_is_replaced_and_that_of_a_living_one_is_not(
    place: Any,
) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place.socket))
    with place.served(), pytest.raises(UsageError, match="another agent listens there"):
        service.listen(place.socket)


def test_something_else_at_the_sockets_place_is_left_alone(place: Any) -> None:
    place.socket.write_text("a letter")
    with pytest.raises(UsageError, match="something else is there"):
        service.listen(place.socket)
    assert place.socket.read_text() == "a letter"


# httpcore leaves the socket whose connection was refused to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_agent_is_an_error_of_one_line(place: Any, request_of: RequestOf) -> None:
    with pytest.raises(AgentFailed, match="no agent answers"):
        AgentSite(socket=place.socket, bundle=place.bundle).train(request_of())

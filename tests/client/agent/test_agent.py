"""Policy and audit around a site: what fails, fails closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from client.agent import schema
from client.agent.agent import Agent, Sums
from client.agent.audit import Kind
from common.errors import LedgerError
from common.messages import Reason, SiteDescription, Status, TrainReply, TrainRequest
from common.privacy.budget import Budget

RequestOf = Callable[..., TrainRequest]


class Recorder:
    """Says that it trained, and remembers under which cap."""

    def __init__(self) -> None:
        self.budget: Budget | None = None
        self.trained: list[str] = []

    def describe(self) -> SiteDescription:
        return SiteDescription(site="hospital-1", num_patients=6)

    def hold_to(self, budget: Budget) -> None:
        self.budget = budget

    def train(self, request: TrainRequest) -> TrainReply:
        self.trained.append(request.request_id)
        return TrainReply(
            site="hospital-1", status=Status.trained, num_patients=6, weights=request.weights
        )


@pytest.fixture
def site() -> Recorder:
    return Recorder()


@pytest.fixture
def agent(place: Any, site: Recorder) -> Agent:
    return place.start(site)


@pytest.fixture
def ask(place: Any, agent: Agent, request_of: RequestOf) -> Callable[..., TrainReply]:
    def asked(**changes: Any) -> TrainReply:
        content = schema.request_bytes(request_of(**changes), place.bundle)
        return schema.read_reply(agent.answer("train", content, 7).content)

    return asked


def test_the_site_is_held_to_the_policys_budget_of_that_moment(
    place: Any, ask: Callable[..., TrainReply], site: Recorder, policy_text: str
) -> None:
    assert ask().status is Status.trained
    assert site.budget == Budget(epsilon=50.0, delta=1e-3, accountant="rdp", adaptive=True)
    place.write_policy(policy_text.replace("epsilon: 50.0", "epsilon: 2"))
    ask()
    assert site.budget is not None
    assert site.budget.epsilon == 2.0


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("paused: false", "paused: true", Reason.paused),
        ("paused: false", "paused: [", Reason.policy_unreadable),
        ("paused: false", "pause: false", Reason.policy_unreadable),
        ("hours: []", "hours: [20:00-06:00]", Reason.outside_hours),
        ("phantom:", "another:", Reason.unapproved_study),
        ("test_*", "vit_*", Reason.unapproved_model),
    ],
)
def test_a_policy_that_says_no_is_heard_without_a_restart(
    place: Any,
    ask: Callable[..., TrainReply],
    site: Recorder,
    policy_text: str,
    old: str,
    new: str,
    reason: Reason,
) -> None:
    assert ask().status is Status.trained
    place.write_policy(policy_text.replace(old, new))
    reply = ask(round_number=2)
    assert (reply.status, reply.reason, reply.weights) == (Status.refused, reason, None)
    assert len(site.trained) == 1
    place.write_policy(policy_text)
    assert ask(round_number=2).status is Status.trained
    assert len(place.rows("policy_changed")) == 3


def test_without_a_readable_policy_nobody_even_learns_who_the_site_is(
    place: Any, agent: Agent
) -> None:
    place.policy.unlink()
    answer = agent.answer("describe", schema.describe_bytes(place.bundle))
    assert (answer.status, answer.content) == (403, b"")
    assert answer.reason is Reason.policy_unreadable
    (row,) = place.rows("policy_changed")
    assert (row["readable"], row["policy"]) == (False, "")


def test_a_round_is_in_the_log_before_it_is_trained(
    place: Any, ask: Callable[..., TrainReply], site: Recorder
) -> None:
    seen: list[int] = []
    train = site.train

    def look(request: TrainRequest) -> TrainReply:
        seen.append(len(place.rows("asked")) - len(place.rows("answered")))
        return train(request)

    site.train = look  # type: ignore[method-assign]
    ask()
    assert seen == [1]
    (asked,), (answered,) = place.rows("asked"), place.rows("answered")
    assert (asked["uid"], asked["bundle"]) == (7, place.bundle)
    assert (answered["asked"], answered["update_norm"]) == (asked["seq"], 0.0)


def test_what_cannot_be_logged_is_refused_and_not_trained(
    place: Any, ask: Callable[..., TrainReply], site: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    ask()
    place.audit.close()
    reply = ask(round_number=2)
    assert (reply.status, reply.reason) == (Status.refused, Reason.ledger_unavailable)
    assert len(site.trained) == 1
    assert "cannot be written" in caplog.text


def test_an_answer_that_cannot_be_logged_does_not_leave(
    place: Any, ask: Callable[..., TrainReply], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = place.audit.append

    def full(kind: Kind, fields: Any) -> int:
        if kind is Kind.answered:
            raise LedgerError("disk full")
        return append(kind, fields)

    monkeypatch.setattr(type(place.audit), "append", lambda _, kind, fields: full(kind, fields))
    reply = ask()
    assert (reply.reason, reply.weights) == (Reason.ledger_unavailable, None)


def test_damaged_approvals_refuse_everything(
    place: Any, ask: Callable[..., TrainReply], site: Recorder
) -> None:
    (place.folder / "bundles" / "approvals.json").write_text("{")
    assert ask().status is Status.refused
    assert site.trained == []


def test_the_log_has_no_text_of_a_request_that_does_not_fit(
    place: Any, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    answer = agent.answer("train", schema.describe_bytes("ab" * 32) + b"SECRET")
    assert answer.reason is Reason.bad_request
    assert place.rows("asked")[0]["bundle"] is None
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    ("policy", "level"), [("policy_text", "INFO"), ("secure_policy", "WARNING")]
)
def test_without_a_roster_is_a_warning_only_where_the_policy_shares_noise(
    place: Any,
    policy: str,
    level: str,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    caplog.set_level("INFO")
    place.write_policy(request.getfixturevalue(policy))
    place.sums = Sums(roster=place.folder / "roster.json", part=lambda _: pytest.fail("asked"))
    place.start().look_at_policy()
    said = [one for one in caplog.records if "no roster can be used" in one.message]
    assert [one.levelname for one in said] == [level]

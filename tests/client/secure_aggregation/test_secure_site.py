from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from client.dp.training import RoundSeeds
from client.local_model import Surroundings
from client.secure_aggregation.secure_site import noisy_sum
from common.messages import Reason, Status
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.events import SummedDiscreteGaussianSteps
from common.secure_aggregation.conversation import Step
from common.secure_aggregation.messages import read_masked
from common.secure_aggregation.rounding import into_ring, out_of_ring
from common.secure_aggregation.terms import Terms


def _entries(consortium: Any, name: str) -> list[Any]:
    setup = consortium.setup(name)
    with setup.open_ledger(setup.budget.unit) as ledger:
        return list(ledger.entries())


def _end(consortium: Any, server: Any, request: Any) -> Any:
    survivors = server.survivors_list()
    for name in server.survivors:
        answer = consortium.ask(name, Step.agreement, survivors, request)
        server.take_agreement(name, answer.body)
    agreements = server.agreements()
    for name in server.survivors:
        server.take_reveal(name, consortium.ask(name, Step.reveal, agreements, request).body)
    return server.total()


def _expected(consortium: Any, request: Any, name: str) -> np.ndarray:
    """The site's noisy sum, computed here from its own cohort and seeds."""
    setup = consortium.setup(name)
    training = setup.model.prepare(request.recipe, Surroundings(cohort=setup.cohort))
    from common import models

    models.load_trainable_weights(training.model, request.weights)
    seeds = RoundSeeds(
        sampling=setup.seeds.seed(request.round, "sampling"),
        noise=setup.seeds.seed(request.round, "noise"),
    )
    return noisy_sum(training, setup.cohort, request, consortium.mechanism(), seeds)


def test_a_round_gives_the_sum_of_what_each_site_made(consortium: Any) -> None:
    request = consortium.request()
    server, shares = consortium.shares(request)
    for name, body in shares.items():
        answer = consortium.ask(name, Step.masked, body, request)
        assert answer.reason is None
        assert answer.spend is not None
        assert answer.spend["epsilon_alone"]["epsilon"] > answer.spend["epsilon"]
        server.take_masked(name, answer.body)
    expected = sum(_expected(consortium, request, name) for name in shares)
    assert (out_of_ring(_end(consortium, server, request)) == expected).all()
    for name in shares:
        (entry,) = _entries(consortium, name)
        assert entry.state is State.committed
        (event,) = entry.events
        assert isinstance(event, SummedDiscreteGaussianSteps)
        assert event.num_shares == 3
        assert event.gaussian().noise_multiplier >= 2.0


def test_what_a_site_sends_is_not_its_sum(consortium: Any) -> None:
    request = consortium.request()
    _, shares = consortium.shares(request)
    answer = consortium.ask("hospital-1", Step.masked, shares["hospital-1"], request)
    masked = read_masked(consortium.terms(request), answer.body)
    bare = into_ring(_expected(consortium, request, "hospital-1"), 32)
    assert (masked != bare).mean() > 0.99


def test_what_is_masked_has_the_sites_share_of_noise_in_it_and_no_other(consortium: Any) -> None:
    request, mechanism = consortium.request(), consortium.mechanism()
    setup = consortium.setup("hospital-1")
    training = setup.model.prepare(request.recipe, Surroundings(cohort=setup.cohort))
    # the same patients and the same rounding each time: what differs is noise alone
    made = [
        noisy_sum(training, setup.cohort, request, mechanism, RoundSeeds(sampling=5, noise=seed))
        for seed in (*range(-(-4000 // mechanism.num_weights)), None, None)
    ]
    assert (made[-1] != made[-2]).mean() > 0.99, "a hospital has no seed of its noise"
    noise = np.concatenate([one - other for one, other in itertools.pairwise(made)][::2])
    noise = noise.astype(float) / math.sqrt(2)
    for factor, right in ((1.0, True), (0.9, False), (1.1, False)):
        statistic = float(np.square(noise / (factor * mechanism.share_std)).sum())
        low, high = stats.chi2.ppf(1e-6, noise.size), stats.chi2.isf(1e-6, noise.size)
        assert bool(low < statistic < high) is right


def test_a_repeated_question_gets_the_answer_that_was_given(consortium: Any) -> None:
    request = consortium.request()
    _, shares = consortium.shares(request)
    first = consortium.ask("hospital-1", Step.masked, shares["hospital-1"], request)
    consortium.open("hospital-1")  # the process was started anew
    assert consortium.ask("hospital-1", Step.masked, shares["hospital-1"], request) == first
    assert len(_entries(consortium, "hospital-1")) == 1


def test_a_replayed_round_is_refused_and_costs_nothing_more(consortium: Any) -> None:
    request = consortium.request()
    _, shares = consortium.shares(request)
    assert consortium.ask("hospital-1", Step.masked, shares["hospital-1"], request).reason is None
    _, again = consortium.shares(request)  # the same round, with fresh keys
    replayed = consortium.ask("hospital-1", Step.masked, again["hospital-1"], request)
    assert replayed.reason is Reason.bad_request
    assert not replayed.body
    assert len(_entries(consortium, "hospital-1")) == 1
    assert replayed.spend is not None, "what the round cost is not told"
    assert replayed.spend["epsilon"] > 0


def test_a_question_of_another_round_is_refused(consortium: Any) -> None:
    request, later = consortium.request(1), consortium.request(2)
    _, shares = consortium.shares(request)
    answer = consortium.ask("hospital-1", Step.masked, shares["hospital-1"], later)
    assert answer.reason is Reason.insecure
    assert _entries(consortium, "hospital-1") == []


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 9.0}, {"sampling_rate": 1.0}, {"noise_multiplier": 9.0}, {"steps": 2}],
)
def test_another_recipe_than_all_agreed_on_is_refused(
    consortium: Any, changes: dict[str, Any]
) -> None:
    request = consortium.request()
    _, shares = consortium.shares(request)
    other = replace(request, recipe=replace(request.recipe, **changes))
    question = {"terms": consortium.terms(request)}
    answer = consortium.ask("hospital-1", Step.masked, shares["hospital-1"], other, **question)
    assert answer.reason is Reason.insecure
    assert _entries(consortium, "hospital-1") == []


def test_less_noise_than_the_recipe_says_is_refused(consortium: Any) -> None:
    consortium.noise = 1.0
    request = consortium.request()
    _, shares = consortium.shares(request)
    answer = consortium.ask("hospital-1", Step.masked, shares["hospital-1"], request)
    assert answer.reason is Reason.insecure
    assert _entries(consortium, "hospital-1") == []


def test_more_shares_of_noise_than_there_are_is_refused(consortium: Any) -> None:
    request = consortium.request()
    mechanism = replace(consortium.mechanism(), num_shares=30, share_std=400_000)
    assert mechanism.noise_multiplier > 2.0
    from common.secure_aggregation.task import terms_of

    terms: Terms = terms_of(request, mechanism, consortium.parties, consortium.roster)
    consortium.terms = lambda _: terms
    consortium.mechanism = lambda: mechanism
    _, shares = consortium.shares(request)
    answer = consortium.ask("hospital-1", Step.masked, shares["hospital-1"], request)
    assert answer.reason is Reason.insecure
    assert _entries(consortium, "hospital-1") == []


def test_a_site_that_asks_for_more_colluders_takes_no_part(consortium: Any) -> None:
    consortium.open("hospital-1", least_colluders=1)
    answer = consortium.ask("hospital-1", Step.keys, b"", consortium.request())
    assert answer.reason is Reason.insecure


def test_its_own_update_is_shown_to_nobody(consortium: Any) -> None:
    reply = consortium.sites["hospital-1"].train(consortium.request())
    assert (reply.status, reply.reason) == (Status.refused, Reason.insecure)
    assert _entries(consortium, "hospital-1") == []


@pytest.mark.parametrize(
    "budget",
    [
        Budget(epsilon=0.3, delta=1e-3, accountant="rdp"),
        Budget(epsilon=50.0, delta=1e-3, accountant="rdp", epsilon_alone=2.0),
    ],
)
def test_each_cap_refuses_before_anything_is_computed(consortium: Any, budget: Budget) -> None:
    # under trust the round costs about 1.1, without it about 3.3
    consortium.changes = {"budget": budget}
    consortium.open("hospital-1")
    request = consortium.request()
    _, shares = consortium.shares(request)
    answer = consortium.ask("hospital-1", Step.masked, shares["hospital-1"], request)
    assert answer.reason is Reason.budget_exceeded
    assert _entries(consortium, "hospital-1") == []


def test_garbage_is_refused(consortium: Any) -> None:
    from common.secure_aggregation.conversation import SecureAnswer

    for data in (b"", b"\x80\x04N.", b"FWSA" + bytes(100)):
        answer = SecureAnswer.from_bytes(consortium.sites["hospital-1"].answer(data))
        assert answer.reason is Reason.insecure
        assert answer.body == b""


@pytest.mark.parametrize("left", [b"", b"FWSA", None])
def test_a_damaged_state_ends_the_round_and_not_the_site(
    consortium: Any, left: bytes | None
) -> None:
    request = consortium.request()
    _, shares = consortium.shares(request)
    path = consortium.folder / "hospital-1" / "secure-round.state"
    path.write_bytes(path.read_bytes()[:400] if left is None else left)
    answer = consortium.ask("hospital-1", Step.masked, shares["hospital-1"], request)
    assert (answer.reason, answer.body) == (Reason.insecure, b"")
    assert _entries(consortium, "hospital-1") == []
    _, shares = consortium.shares(consortium.request(2))
    later = consortium.ask("hospital-1", Step.masked, shares["hospital-1"], consortium.request(2))
    assert later.reason is None


def test_the_state_is_for_its_owner_alone(consortium: Any) -> None:
    consortium.ask("hospital-1", Step.keys, b"", consortium.request())
    path = consortium.folder / "hospital-1" / "secure-round.state"
    assert path.stat().st_mode & 0o077 == 0

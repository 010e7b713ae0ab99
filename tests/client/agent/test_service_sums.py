"""Secure sums among agents behind real sockets; the server's side is done by hand, without Flower.

Keys, masks and shares are the agents': a round goes on where a process was started anew, is charged
once whatever breaks off, and is refused uncharged where roster or policy do not allow it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from client.agent import schema
from client.agent import status as site_status
from client.agent.audit import Kind
from client.agent.forwarder import AgentFailed, AgentSite
from client.agent.site_file import SiteFile
from client.local_model import Surroundings
from client.secure_aggregation import secure_site
from client.secure_aggregation.secure_site import noisy_sum
from client.site import RoundSeeds
from common import models
from common.config import Job
from common.messages import Reason, Status
from common.privacy.chain import State
from common.privacy.cohort import fingerprint_of
from common.secure_aggregation.conversation import Question, Step
from common.secure_aggregation.frame import unpack
from common.secure_aggregation.mechanism import Parties
from common.secure_aggregation.primitives import SEED_BYTES
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.rounding import out_of_ring
from common.secure_aggregation.server_round import ServerRound
from common.secure_aggregation.site_round import SiteRound

NAMES = tuple(f"hospital-{number}" for number in range(1, 5))
FIRST, *OTHERS = NAMES


@pytest.fixture
def served(town: Any) -> Any:
    """All four agents answer at their sockets."""
    with ExitStack() as stack:
        for place in town.places.values():
            stack.enter_context(place.served())
        yield town


def to_masked(town: Any, request: Any, names: tuple[str, ...] = NAMES) -> Any:
    """A round until masked vectors are due: the server, and what each site gets."""
    server = ServerRound(town.terms(request), town.roster)
    for name in names:
        server.take_keys(name, town.ask(name, Step.keys, b"", request).body)
    keys = server.keys()
    for name in names:
        server.take_shares(name, town.ask(name, Step.shares, keys, request).body)
    return server, server.shares()


def to_the_end(
    town: Any, server: ServerRound, request: Any, asked: Iterable[str], survivors: bytes
) -> Any:
    """The sum, with the help of those who are ``asked``."""
    for name in asked:
        said = town.ask(name, Step.agreement, survivors, request)
        server.take_agreement(name, said.body)
    agreements = server.agreements()
    for name in asked:
        server.take_reveal(name, town.ask(name, Step.reveal, agreements, request).body)
    return out_of_ring(server.total())


def in_the_clear(town: Any, name: str, request: Any) -> np.ndarray:
    """What the hospital adds to the sum, from its cohort and seeds."""
    setup = town.setup(name)
    training = setup.model.prepare(request.recipe, Surroundings(cohort=setup.cohort))
    models.load_trainable_weights(training.model, request.weights)
    seeds = RoundSeeds(
        sampling=setup.seeds.seed(request.round, "sampling"),
        noise=setup.seeds.seed(request.round, "noise"),
    )
    return noisy_sum(training, setup.cohort, request, town.mechanism(), seeds)


def entries(town: Any, name: str) -> list[Any]:
    setup = town.setup(name)
    with setup.open_ledger(setup.budget.unit) as ledger:
        return list(ledger.entries())


def status_of(place: Any) -> dict[str, Any]:
    """As ``fedward site status --json`` reads the one cohort from the hospital's files."""
    cohort = fingerprint_of(place.site._setup.patient_hashes)
    place.audit.append(Kind.started, {"study": "phantom", "cohort": cohort})
    file = SiteFile(
        name="h",
        socket=place.socket,
        policy=place.policy,
        state=place.folder,
        job=Job.classify,
        settings=(),
    )
    (found,) = site_status.read(file, last=0).to_dict()["cohorts"]
    return found


# httpcore leaves the socket whose connection was refused to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_dies_between_masking_and_unmasking_and_both_sides_hold_both_figures(
    town: Any,
) -> None:
    request = town.request()
    statements: dict[str, Any] = {}
    with ExitStack() as others:
        for name in OTHERS:
            others.enter_context(town.places[name].served())
        with town.places[FIRST].served():
            server, shares = to_masked(town, request)
            for name in NAMES:
                said = town.ask(name, Step.masked, shares[name], request)
                assert said.reason is None
                statements[name] = said.spend
                server.take_masked(name, said.body)
        survivors = server.survivors_list()
        with pytest.raises(AgentFailed, match="no agent answers"):
            town.ask(FIRST, Step.agreement, survivors, request)
        total = to_the_end(town, server, request, OTHERS, survivors)
    expected = sum(in_the_clear(town, name, request) for name in NAMES)
    assert (total == expected).all(), "the vector of the one who died is in the sum"
    for name, place in town.places.items():
        spend = statements[name]
        assert spend["epsilon_alone"]["epsilon"] > spend["epsilon"] > 0
        cohort = status_of(place)
        assert cohort["epsilon"] == spend["epsilon"]
        assert cohort["epsilon_alone"] == spend["epsilon_alone"]["epsilon"]
        assert (cohort["cap"], cohort["cap_alone"]) == (50.0, 200.0)
        (entry,) = entries(town, name)
        assert entry.state is State.committed
        (row,) = [row for row in place.rows("answered") if row["decision"] == "trained"]
        assert row["ledger"]["head"] == spend["head"]
        (asked,) = [row for row in place.rows("asked") if row["step"] == "masked"]
        assert (asked["run"], asked["round"], asked["event"]["num_shares"]) == ("run", 1, 2)


@pytest.mark.parametrize("after", [Step.keys, Step.shares, Step.masked, Step.agreement])
def test_an_agent_that_is_started_anew_goes_on_and_charges_once(town: Any, after: Step) -> None:
    request, place = town.request(), town.places[FIRST]
    bodies: dict[str, dict[Step, bytes]] = {name: {} for name in NAMES}
    server = ServerRound(town.terms(request), town.roster)
    take = {
        Step.keys: server.take_keys,
        Step.shares: server.take_shares,
        Step.masked: server.take_masked,
        Step.agreement: server.take_agreement,
        Step.reveal: server.take_reveal,
    }
    then = {
        Step.shares: lambda: dict.fromkeys(NAMES, server.keys()),
        Step.masked: server.shares,
        Step.agreement: lambda: dict.fromkeys(NAMES, server.survivors_list()),
        Step.reveal: lambda: dict.fromkeys(NAMES, server.agreements()),
    }
    with ExitStack() as stack:
        for name in OTHERS:
            stack.enter_context(town.places[name].served())
        first = stack.enter_context(ExitStack())
        first.enter_context(place.served())
        for step in Step:
            given = then[step]() if step in then else dict.fromkeys(NAMES, b"")
            for name in NAMES:
                said = town.ask(name, step, given[name], request)
                assert said.reason is None
                bodies[name][step] = said.body
                take[step](name, said.body)
            if step is after:
                first.close()
                first.enter_context(place.served())
                again = town.ask(FIRST, step, given[FIRST], request)
                assert again.body == bodies[FIRST][step], "what was said is said again"
    expected = sum(in_the_clear(town, name, request) for name in NAMES)
    assert (out_of_ring(server.total()) == expected).all()
    assert [entry.state for entry in entries(town, FIRST)] == [State.committed]


@pytest.mark.parametrize("moment", ["computing", "before the answer is kept"])
def test_a_crash_while_a_vector_is_made_keeps_the_charge_and_makes_no_second_one(
    town: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = town.request()
    place = town.places[FIRST]

    def crash(*arguments: object, **more: object) -> None:
        raise SystemExit(9)

    with ExitStack() as stack:
        for one in town.places.values():
            stack.enter_context(one.served())
        _, shares = to_masked(town, request)
    # the process ends here: past the agent's own boundary, which catches exceptions
    agent = place.start()
    question = Question(
        step=Step.masked,
        terms=town.terms(request),
        mechanism=town.mechanism(),
        body=shares[FIRST],
    ).to_bytes()
    content = schema.secure_bytes(question, request, place.bundle)
    target = "noisy_sum" if moment == "computing" else "write_atomically"
    with monkeypatch.context() as broken:
        broken.setattr(secure_site, target, crash)
        with pytest.raises(SystemExit):
            agent.answer("secure", content)
    expected = State.reserved if moment == "computing" else State.committed
    assert [entry.state for entry in entries(town, FIRST)] == [expected]
    with place.served():
        said = town.ask(FIRST, Step.masked, shares[FIRST], request)
        assert (said.reason, said.body) == (Reason.bad_request, b"")
        # with fresh keys for the same round neither
        assert town.ask(FIRST, Step.keys, b"", request).body
    with ExitStack() as stack:
        for one in town.places.values():
            stack.enter_context(one.served())
        _, shares = to_masked(town, request)
        again = town.ask(FIRST, Step.masked, shares[FIRST], request)
        assert (again.reason, again.body) == (Reason.bad_request, b"")
    assert [entry.state for entry in entries(town, FIRST)] == [expected]
    status = status_of(place)
    assert status["epsilon"] > 0
    assert status["epsilon_alone"] > status["epsilon"]


def test_no_secret_of_a_round_passes_the_socket(served: Any) -> None:
    request = served.request()
    server, shares = to_masked(served, request)
    secrets: set[bytes] = set()

    def look(name: str) -> None:
        """The seeds that the agent keeps, and the shares that it holds for others."""
        kept = served.places[name].folder / "secure-round.state"
        assert kept.stat().st_mode & 0o077 == 0
        header, body = unpack(kept.read_bytes(), "kept")
        state = SiteRound.from_bytes(body[: int(str(header["state"]))])
        found = {state.channel_seed, state.key_seed, state.mask_seed, *state.held.values()}
        secrets.update(found - {bytes(SEED_BYTES)})

    for name in NAMES:
        look(name)
        server.take_masked(name, served.ask(name, Step.masked, shares[name], request).body)
        look(name)
    assert len(secrets) >= 3 * len(NAMES) + 12
    said = b"".join(served.heard)
    for secret in secrets:
        assert secret not in said
        assert secret.hex().encode() not in said
    to_the_end(served, server, request, NAMES, server.survivors_list())
    kept = (served.places[FIRST].folder / "secure-round.state").read_bytes()
    assert not any(secret.hex().encode() in kept for secret in secrets), "erased with the reveal"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("accepted: [secure_aggregation], least_sites: 4, least_colluders: 1", "accepted: [local]",
         Reason.unapproved_trust),
        ("least_sites: 4", "least_sites: 5", Reason.weak_trust),
        ("least_colluders: 1", "least_colluders: 2", Reason.weak_trust),
        ("phantom:", "another:", Reason.unapproved_study),
        ("test_*", "vit_*", Reason.unapproved_model),
        ("paused: false", "paused: true", Reason.paused),
        ("hours: []", "hours: [20:00-06:00]", Reason.outside_hours),
        ("paused: false", "paused: [", Reason.policy_unreadable),
    ],
)  # fmt: skip
def test_a_policy_that_does_not_accept_the_terms_gives_not_even_keys(
    town: Any, secure_policy: str, old: str, new: str, reason: Reason
) -> None:
    place = town.places[FIRST]
    assert old in secure_policy
    with place.served():
        place.write_policy(secure_policy.replace(old, new))
        said = town.ask(FIRST, Step.keys, b"", town.request())
        assert (said.reason, said.body) == (reason, b"")
        place.write_policy(secure_policy)
        assert town.ask(FIRST, Step.keys, b"", town.request()).reason is None
    refused, answered = place.rows("answered")
    assert (refused["decision"], refused["reason"]) == ("refused", reason.value)
    assert answered["decision"] == "answered"
    assert entries(town, FIRST) == []


@pytest.mark.parametrize(
    "parties",
    [
        Parties(num_sites=4, max_dropouts=1),
        Parties(num_sites=4),
    ],
)
def test_a_server_that_counts_on_everybodys_honesty_is_refused(town: Any, parties: Parties) -> None:
    town.parties = parties
    with town.places[FIRST].served():
        assert town.ask(FIRST, Step.keys, b"", town.request()).reason is Reason.weak_trust


def test_a_roster_of_the_servers_making_is_refused(town: Any) -> None:
    """One honest hospital among keys that are all the server's own."""
    keys = {name: place.approvals.key.public_key for name, place in town.places.items()}
    real = town.roster
    town.roster = Roster.of({**keys, **{name: f"{n:064x}" for n, name in enumerate(OTHERS)}})
    with town.places[FIRST].served():
        said = town.ask(FIRST, Step.keys, b"", town.request())
        assert (said.reason, said.body) == (Reason.another_roster, b"")
        town.roster = real
        assert town.ask(FIRST, Step.keys, b"", town.request()).reason is None


def spoil(place: Any, how: str) -> None:
    """Make the pinned roster one that cannot be used."""
    path = place.folder / "roster.json"
    text = path.read_text()
    match how:
        case "absent":
            path.unlink()
        case "not named":
            path.write_text(text.replace('"hospital-1"', '"hospital-9"'))
        case "another key":
            path.write_text(text.replace(place.approvals.key.public_key, "ab" * 32))
        case "damaged":
            path.write_text(text[:-9])
        case "writable":
            path.chmod(0o666)


@pytest.mark.parametrize("how", ["absent", "not named", "another key", "damaged", "writable"])
def test_without_a_roster_of_its_own_a_site_takes_no_part_and_says_why_to_the_hospital(
    town: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = town.places[FIRST]
    good = (place.folder / "roster.json").read_text()
    with place.served():
        spoil(place, how)
        said = town.ask(FIRST, Step.keys, b"", town.request())
        assert (said.reason, said.body) == (Reason.no_roster, b"")
        (place.folder / "roster.json").write_text(good)
        (place.folder / "roster.json").chmod(0o644)
        assert town.ask(FIRST, Step.keys, b"", town.request()).reason is None
    warned = [one for one in caplog.messages if "no roster can be used" in one]
    assert len(warned) == 1
    assert "\n" not in warned[0]
    rows = place.rows("roster_pinned")
    assert [row["roster"] for row in rows] == [town.roster.digest]
    assert rows[0]["hospitals"] == list(NAMES)


def test_a_recipe_weaker_than_the_policy_is_refused_before_it_costs(served: Any) -> None:
    request = served.request(noise_multiplier=0.9)
    _, shares = to_masked(served, request)
    said = served.ask(FIRST, Step.masked, shares[FIRST], request)
    assert said.reason is Reason.weak_noise
    assert entries(served, FIRST) == []


@pytest.mark.parametrize(
    ("old", "new"), [("epsilon: 50.0", "epsilon: 0.1"), ("alone: 200.0", "alone: 0.2")]
)
def test_each_of_the_two_caps_refuses_before_it_costs(
    served: Any, secure_policy: str, old: str, new: str
) -> None:
    request, place = served.request(), served.places[FIRST]
    place.write_policy(secure_policy.replace(old, new))
    _, shares = to_masked(served, request)
    said = served.ask(FIRST, Step.masked, shares[FIRST], request)
    assert (said.reason, said.body) == (Reason.budget_exceeded, b"")
    assert entries(served, FIRST) == []
    place.write_policy(secure_policy)
    assert served.ask(FIRST, Step.masked, shares[FIRST], request).reason is None
    assert len(entries(served, FIRST)) == 1


def test_what_is_charged_is_finished_though_the_site_is_paused(
    served: Any, secure_policy: str
) -> None:
    request = served.request()
    server, shares = to_masked(served, request)
    for name in NAMES:
        server.take_masked(name, served.ask(name, Step.masked, shares[name], request).body)
    for place in served.places.values():
        place.write_policy(secure_policy.replace("paused: false", "paused: true"))
    total = to_the_end(served, server, request, NAMES, server.survivors_list())
    assert (total == sum(in_the_clear(served, name, request) for name in NAMES)).all()


def test_shares_are_not_given_away_once_the_trust_is_withdrawn(
    served: Any, secure_policy: str
) -> None:
    request = served.request()
    server, shares = to_masked(served, request)
    for name in NAMES:
        server.take_masked(name, served.ask(name, Step.masked, shares[name], request).body)
    survivors = server.survivors_list()
    served.places[FIRST].write_policy(
        secure_policy.replace("least_colluders: 1", "least_colluders: 2")
    )
    said = served.ask(FIRST, Step.agreement, survivors, request)
    assert (said.reason, said.body) == (Reason.weak_trust, b"")


def test_a_hospital_that_shares_its_noise_shows_nobody_its_own_update(
    served: Any, secure_policy: str
) -> None:
    place = served.places[FIRST]
    stub = AgentSite(socket=place.socket, bundle=place.bundle)
    reply = stub.train(served.request())
    assert (reply.status, reply.reason) == (Status.refused, Reason.unapproved_trust)
    place.write_policy(secure_policy.replace("[secure", "[local, secure"))
    assert stub.train(served.request()).status is Status.trained


def test_a_bundle_that_is_not_approved_gets_no_keys(served: Any) -> None:
    place, request = served.places[FIRST], served.request()
    question = Question(
        step=Step.keys, terms=served.terms(request), mechanism=served.mechanism()
    ).to_bytes()
    content = schema.secure_bytes(question, None, "ab" * 32)
    transport = httpx.HTTPTransport(uds=str(place.socket))
    with httpx.Client(transport=transport, timeout=60, trust_env=False) as client:
        said = client.post("http://agent/v1/secure", content=content)
    assert (said.status_code, said.headers["x-fedward-reason"]) == (403, "unapproved_code")


def test_a_mechanism_beyond_exact_arithmetic_is_refused(served: Any) -> None:
    mechanism = served.mechanism()
    wide = replace(mechanism, clip=1 << 33, share_std=1 << 34, modulus_bits=64)
    served.mechanism = lambda: wide
    request = served.request()
    _, shares = to_masked(served, request)
    assert served.ask(FIRST, Step.masked, shares[FIRST], request).reason is Reason.insecure
    assert entries(served, FIRST) == []

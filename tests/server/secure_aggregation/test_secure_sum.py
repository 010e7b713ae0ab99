"""Whole rounds over Flower's messages: real hospitals, and some that die in the middle."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import build as build_client
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.dp.training import RoundSeeds
from client.local_model import Surroundings
from client.secure_aggregation import secure_site
from client.secure_aggregation.secure_site import SecureSetup, SecureSite, noisy_sum
from client.site import Site
from client.site_setup import SiteSetup
from common import models
from common.config import (
    AccountantName,
    Config,
    FederationConfig,
    FinetuneConfig,
    FinetuneMode,
    ModelConfig,
    PrivacyConfig,
    StrategyConfig,
    StrategyName,
    TrainingConfig,
    Trust,
)
from common.errors import RunFailed
from common.messages import Recipe, TrainRequest, Weights
from common.privacy.budget import Budget
from common.privacy.cohort import patient_hashes
from common.privacy.keys import SiteKey
from common.secure_aggregation.conversation import Question, Step
from common.secure_aggregation.mechanism import Mechanism
from common.secure_aggregation.roster import Roster
from common.seeds import SimulatedSeeds
from server.checkpoint import Checkpoint
from server.end_state import EndState
from server.rounds import Outcome, Start, run
from server.secure_aggregation.secure_sum import SecureSums

NAMES = ("site-1", "site-2", "site-3", "site-4")
MODEL = SiteModel(
    config=ModelConfig(architecture="test_vit", patch_size=16),
    finetune=FinetuneConfig(mode=FinetuneMode.head),
    image_size=32,
    num_classes=2,
    seed=5,
)


class _Mortal(SecureSite):
    """Breaks off when it is asked for one step of one round, so many times."""

    dies: tuple[int, Step] | None = None
    times: float = float("inf")
    answers_first: bool = False

    def answer(self, data: bytes, request: TrainRequest | None = None) -> bytes:
        question = Question.from_bytes(data)
        if self.dies == (question.terms.round, question.step) and self.times > 0:
            self.times -= 1
            if self.answers_first:  # and its answer is lost on the way
                super().answer(data, request)
            raise ConnectionError
        return super().answer(data, request)


class _Network(Grid):
    def __init__(self, sites: list[_Mortal]) -> None:
        self._apps = [build_client(lambda context, site=site: site) for site in sites]
        self._numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **more: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *arguments: Any, **more: Any) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return range(1, len(self._apps) + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        numbers = []
        for message in messages:
            number = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = number
            node = message.metadata.dst_node_id
            context = Context(
                run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}
            )
            self._replies[number] = self._apps[node - 1](copy.deepcopy(message), context)
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(n) for n in sorted(set(message_ids) & set(self._replies))]


def _key(name: str) -> SiteKey:
    return SiteKey(hashlib.sha256(name.encode()).digest())


def _setup(name: str, folder: Path) -> SiteSetup:
    number = NAMES.index(name)
    rng = np.random.default_rng(number)
    cohort = Cohort(
        images=rng.random((8, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, 8),
        patients=np.arange(8),
        num_patients=8,
        patient_ids=tuple(f"{number}-{one}" for one in range(8)),
    )
    return SiteSetup(
        name=name,
        cohort=cohort,
        patient_hashes=patient_hashes(cohort.patient_ids, bytes(32)),
        ledger=folder / f"{name}.sqlite",
        replies=folder / name,
        budget=Budget(epsilon=100.0, delta=1e-3, accountant="rdp"),
        model=MODEL,
        seeds=SimulatedSeeds(run_seed=3, site=name),
    )


@dataclass
class Federation:
    folder: Path
    rounds: int = 1
    federation: dict[str, Any] = field(default_factory=dict)
    strategy: StrategyName = StrategyName.fedavg
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roster = Roster.of({name: _key(name).public_key for name in NAMES})
        self.sites = {
            name: _Mortal(
                Site(_setup(name, self.folder)),
                SecureSetup(roster=self.roster, key=_key(name), state=self.folder / name / "state"),
            )
            for name in NAMES
        }
        model = MODEL.build()
        self.initial = models.trainable_weights(model)
        self.frozen = models.frozen_sha256(model)

    def config(self) -> Config:
        return Config(
            privacy=PrivacyConfig(
                epsilon=None,
                noise_multiplier=2.0,
                accountant=AccountantName.rdp,
                delta=1e-3,
                sampling_rate=0.5,
            ),
            federation=FederationConfig(
                num_sites=len(NAMES),
                rounds=self.rounds,
                steps_per_round=1,
                trust=Trust.secure_aggregation,
                wait_seconds=5.0,
                timeout_seconds=60.0,
                **{"retries": 1, "retry_seconds": 0.05, **self.federation},
            ),
            strategy=StrategyConfig(name=self.strategy),
            training=TrainingConfig(optimizer="sgd", learning_rate=0.5),
        )

    def start(self, **changes: Any) -> Start:
        values: dict[str, Any] = {
            "config": self.config(),
            "sites": NAMES,
            "checkpoint": Checkpoint(run_id="r1", round=0, weights=self.initial),
            "frozen_sha256": self.frozen,
            "checkpoints": self.folder / "checkpoints",
            "evaluate": lambda weights: {"split": "val", "auroc": None},
            "observe": self.events.append,
            "identities": self.roster,
        }
        return Start(**{**values, **changes})

    def run(self, **changes: Any) -> Outcome:
        return run(_Network(list(self.sites.values())), self.start(**changes))

    def by_hand(self, recipe: Recipe, names: Iterable[str]) -> Weights:
        """One step along the sum of what these sites make, computed without any mask."""
        config = self.config()
        sums = SecureSums.of(self.roster, config.federation.parties, recipe, self.initial, 32)
        request = TrainRequest(
            run_id="r1", round=1, recipe=recipe, frozen_sha256=self.frozen, weights=self.initial
        )
        chosen = list(names)
        total = sum(self._noisy(request, sums.mechanism, name) for name in chosen)
        unit = recipe.max_grad_norm / sums.mechanism.clip
        length = recipe.learning_rate / (recipe.sampling_rate * 8 * len(chosen))
        flat = np.asarray(total * unit * length)
        parts = np.split(flat, np.cumsum([self.initial[n].size for n in sorted(self.initial)])[:-1])
        return {
            n: (self.initial[n] - part.reshape(self.initial[n].shape)).astype(np.float32)
            for n, part in zip(sorted(self.initial), parts, strict=True)
        }

    def _noisy(self, request: TrainRequest, mechanism: Mechanism, name: str) -> np.ndarray:
        setup = _setup(name, self.folder)
        training = setup.model.prepare(request.recipe, Surroundings(cohort=setup.cohort))
        models.load_trainable_weights(training.model, request.weights)
        seeds = RoundSeeds(
            sampling=setup.seeds.seed(1, "sampling"), noise=setup.seeds.seed(1, "noise")
        )
        return noisy_sum(training, setup.cohort, request, mechanism, seeds)

    def charged(self, name: str) -> int:
        setup = _setup(name, self.folder)
        with setup.open_ledger(setup.budget.unit) as ledger:
            return len(ledger.events())


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Federation]:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return lambda **values: Federation(folder=tmp_path, **values)


def _same(first: Weights, second: Weights) -> bool:
    return set(first) == set(second) and all((first[n] == second[n]).all() for n in first)


def test_the_next_model_is_one_step_along_the_sum(made: Any) -> None:
    federation = made()
    outcome = federation.run()
    assert outcome.state is EndState.completed
    assert _same(outcome.checkpoint.weights, federation.by_hand(outcome.recipe, NAMES))
    (record,) = outcome.checkpoint.history
    for name in NAMES:
        site = record["sites"][name]
        assert site["status"] == "trained"
        assert site["statement"]["epsilon_alone"]["epsilon"] > 1.5 * site["epsilon"]
        assert federation.charged(name) == 1


@pytest.mark.parametrize("step", list(Step))
def test_a_site_may_die_at_any_step(made: Any, step: Step) -> None:
    federation = made(federation={"max_dropouts": 1})
    federation.sites["site-2"].dies = (1, step)
    outcome = federation.run()
    late = step in {Step.agreement, Step.reveal}
    left = NAMES if late else [name for name in NAMES if name != "site-2"]
    assert _same(outcome.checkpoint.weights, federation.by_hand(outcome.recipe, left))
    (record,) = outcome.checkpoint.history
    assert record["aggregated"]
    assert record["sites"]["site-2"]["status"] == ("trained" if late else "failed")
    # who died before its vector was made has paid nothing
    assert federation.charged("site-2") == (1 if late else 0)


@pytest.mark.parametrize("answers_first", [False, True])
@pytest.mark.parametrize("step", list(Step))
def test_a_site_that_comes_back_is_part_of_the_sum_and_is_charged_once(
    made: Any, step: Step, answers_first: bool
) -> None:
    federation = made(federation={"retries": 2})
    site = federation.sites["site-2"]
    site.dies, site.times, site.answers_first = (1, step), 2, answers_first
    outcome = federation.run()
    assert outcome.state is EndState.completed
    assert _same(outcome.checkpoint.weights, federation.by_hand(outcome.recipe, NAMES))
    (record,) = outcome.checkpoint.history
    assert {name: one["attempts"] for name, one in record["sites"].items()} == {
        name: 3 if name == "site-2" else 1 for name in NAMES
    }
    assert all(federation.charged(name) == 1 for name in NAMES)


def test_what_a_site_lost_in_computing_is_charged_and_told(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = made(federation={"max_dropouts": 1})
    calls = itertools.count(1)

    def once(*arguments: Any) -> Any:
        if next(calls) == 2:  # site-2 has charged the round and computes
            raise ConnectionError
        return noisy_sum(*arguments)

    monkeypatch.setattr(secure_site, "noisy_sum", once)
    (record,) = federation.run().checkpoint.history
    lost = record["sites"]["site-2"]
    assert (lost["status"], lost["reason"], lost["attempts"]) == ("refused", "bad_request", 2)
    assert federation.charged("site-2") == 1
    assert lost["epsilon"] == record["sites"]["site-1"]["epsilon"] > 0
    assert lost["statement"]["length"] > 0


@pytest.mark.parametrize("step", list(Step))
def test_too_many_dying_discards_the_round_and_it_is_still_charged(made: Any, step: Step) -> None:
    federation = made(rounds=2)
    dying = NAMES[:1] if step in {Step.keys, Step.shares, Step.masked} else NAMES[:2]
    for name in dying:
        federation.sites[name].dies = (1, step)
    outcome = federation.run()
    first, second = outcome.checkpoint.history
    assert not first["aggregated"]
    assert first["evaluation"] is None
    assert second["aggregated"]
    assert any(event["event"] == "discarded" for event in federation.events)
    paid = step in {Step.masked, Step.agreement, Step.reveal}
    assert federation.charged("site-4") == (2 if paid else 1)
    assert outcome.state is EndState.completed_with_missing_sites or step in {
        Step.agreement,
        Step.reveal,
    }


@pytest.mark.parametrize(
    "strategy", [StrategyName.fedavgm, StrategyName.fedadam, StrategyName.fedyogi]
)
def test_server_optimisers_go_on_from_the_sum(made: Any, strategy: StrategyName) -> None:
    outcome = made(rounds=2, strategy=strategy).run()
    assert all(record["aggregated"] for record in outcome.checkpoint.history)
    assert outcome.checkpoint.strategy


def test_without_the_sites_keys_there_is_no_run(made: Any) -> None:
    federation = made()
    with pytest.raises(RunFailed, match="keys are not known"):
        federation.run(identities=None)
    fewer = Roster.of({name: _key(name).public_key for name in NAMES[:2]})
    with pytest.raises(RunFailed, match="keys are not known"):
        federation.run(identities=fewer)


def test_a_stranger_with_another_key_is_no_part_of_the_sum(made: Any) -> None:
    federation = made(federation={"max_dropouts": 1})
    forged = {**{n: _key(n).public_key for n in NAMES}, "site-1": _key("stranger").public_key}
    outcome = federation.run(identities=Roster.of(forged))
    (record,) = outcome.checkpoint.history
    assert not record["aggregated"]  # every site sees another roster than its own
    assert {site["reason"] for site in record["sites"].values()} == {"insecure"}
    assert all(federation.charged(name) == 0 for name in NAMES)

"""A site: nothing before it is in the ledger, nothing twice, and refusals by code."""

from __future__ import annotations

import contextlib
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import classifier as classifier_module
from client.classifier import SiteModel
from client.data.cohort import Cohort
from client.dp.training import train_round
from client.kept import Kept
from client.site import Site, event_of, units
from client.site_setup import SiteSetup
from common import models
from common.config import EngineName, FinetuneConfig, FinetuneMode, ModelConfig, Personal, Unit
from common.messages import Reason, Recipe, Status, TrainReply, TrainRequest, Weights
from common.privacy.budget import Budget
from common.privacy.chain import State
from common.privacy.cohort import patient_hashes
from common.privacy.events import NonPrivateRelease, PoissonGaussianSteps
from common.privacy.ledger import Ledger
from common.seeds import SimulatedSeeds, SystemSeeds

RECIPE = Recipe(
    mechanism="dp_sgd",
    unit="patient",
    accountant="rdp",
    delta=1e-3,
    sampling_rate=0.5,
    noise_multiplier=2.0,
    steps=2,
    max_grad_norm=1.0,
    images_per_patient=2,
    optimizer="adam",
    learning_rate=0.01,
    physical_batch=8,
)
MODEL = SiteModel(
    config=ModelConfig(architecture="test_vit", patch_size=16),
    finetune=FinetuneConfig(mode=FinetuneMode.head),
    image_size=32,
    num_classes=2,
    seed=5,
)


class Crash(BaseException):
    """The process dies here: nothing may catch it."""


def make_cohort() -> Cohort:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(6), [1, 2, 3, 1, 2, 1])
    return Cohort(
        images=rng.random((10, 1, 32, 32), dtype=np.float32),
        labels=rng.integers(0, 2, 10),
        patients=patients,
        num_patients=6,
        patient_ids=tuple(f"p{number}" for number in range(6)),
    )


@pytest.fixture
def setup(tmp_path: Path) -> SiteSetup:
    cohort = make_cohort()
    return SiteSetup(
        name="hospital-1",
        cohort=cohort,
        patient_hashes=patient_hashes(cohort.patient_ids, bytes(32)),
        ledger=tmp_path / "ledger" / "hospital-1.sqlite",
        replies=tmp_path / "replies",
        budget=Budget(epsilon=50.0, delta=1e-3, accountant="rdp"),
        model=MODEL,
        seeds=SystemSeeds(),
    )


def make_request(round_number: int = 1, **changes: Any) -> TrainRequest:
    model = MODEL.build()
    recipe = replace(RECIPE, **changes)
    return TrainRequest(
        run_id="run",
        round=round_number,
        recipe=recipe,
        frozen_sha256=models.frozen_sha256(model),
        weights=models.trainable_weights(model),
    )


def states(setup: SiteSetup) -> list[State]:
    with setup.open_ledger(setup.budget.unit) as ledger:
        return [entry.state for entry in ledger.entries()]


def no_training(*_: object) -> None:
    raise AssertionError("trained, though it must not")


def same_bytes(first: TrainReply, second: TrainReply) -> bool:
    assert first.weights is not None
    assert second.weights is not None
    return models.weights_sha256(first.weights) == models.weights_sha256(second.weights)


def assert_refused(reply: TrainReply, reason: Reason) -> None:
    assert (reply.status, reply.reason, reply.weights) == (Status.refused, reason, None)


def test_a_round_trains_and_says_what_it_spent(setup: SiteSetup) -> None:
    site = Site(setup)
    assert (site.describe().site, site.describe().num_patients) == ("hospital-1", 6)
    request = make_request()
    reply = site.train(request)
    assert (reply.status, reply.reason) == (Status.trained, None)
    assert (reply.site, reply.num_patients) == ("hospital-1", 6)
    assert reply.weights is not None
    assert reply.weights.keys() == request.weights.keys()
    assert models.weights_sha256(reply.weights) != models.weights_sha256(request.weights)
    assert states(setup) == [State.committed]
    assert reply.spend is not None
    event = PoissonGaussianSteps(sampling_rate=0.5, noise_multiplier=2.0, steps=2)
    assert reply.spend["epsilon"] == pytest.approx(setup.budget.spent([event]))
    assert reply.spend["unit"] == "patient"


def test_epsilon_grows_over_rounds_and_over_restarts(setup: SiteSetup) -> None:
    found = []
    for number in (1, 2, 3):
        spend = Site(setup).train(make_request(number)).spend
        assert spend is not None
        found.append(spend["epsilon"])
    event = PoissonGaussianSteps(sampling_rate=0.5, noise_multiplier=2.0, steps=6)
    assert found == sorted(set(found))
    assert found[-1] == pytest.approx(setup.budget.spent([event]))


def test_all_weights_are_trained_from_those_of_the_request(setup: SiteSetup) -> None:
    whole = replace(MODEL, finetune=FinetuneConfig(mode=FinetuneMode.all))
    setup = replace(setup, model=whole, seeds=SimulatedSeeds(run_seed=1, site="hospital-1"))
    model = whole.build()
    request = replace(
        make_request(optimizer="sgd", noise_multiplier=1.0, learning_rate=1e-7),
        frozen_sha256=models.frozen_sha256(model),
        weights={name: 0.5 * w for name, w in models.trainable_weights(model).items()},
    )
    reply = Site(setup).train(request)
    assert reply.weights is not None
    assert len(reply.weights) > 20
    for name, value in reply.weights.items():
        assert np.allclose(value, request.weights[name], atol=1e-5), name


def test_the_reservation_is_durable_before_training(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[State]] = []

    def look_then_train(*arguments: Any) -> None:
        seen.append(states(setup))
        train_round(*arguments)

    monkeypatch.setattr(classifier_module, "train_round", look_then_train)
    assert Site(setup).train(make_request()).status is Status.trained
    assert seen == [[State.reserved]]
    assert states(setup) == [State.committed]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, Crash])
def test_training_that_fails_stays_counted_as_spent(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(classifier_module, "train_round", fail)
    with pytest.raises(error):
        Site(setup).train(make_request())
    assert states(setup) == [State.reserved]
    assert not list(setup.replies.glob("*.safetensors"))
    with setup.open_ledger(Unit.patient) as ledger:
        statement = ledger.statement(setup.budget)
    assert statement.num_open == 1
    assert statement.epsilon == pytest.approx(setup.budget.spent([event_of(RECIPE)]))
    assert statement.epsilon_committed == 0


def test_after_a_crash_the_same_request_trains_under_the_same_reservation(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(classifier_module, "train_round", die)
        with pytest.raises(Crash):
            Site(setup).train(make_request())
    reply = Site(setup).train(make_request())
    assert reply.status is Status.trained
    assert states(setup) == [State.committed]


def test_a_crash_between_storing_and_commit_sends_what_was_stored(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", die)
        with pytest.raises(Crash):
            Site(setup).train(make_request())
    (stored,) = setup.replies.glob("*")
    before = stored.read_bytes()
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    reply = Site(setup).train(make_request())
    assert reply.status is Status.trained
    assert stored.read_bytes() == before
    assert states(setup) == [State.committed]


@pytest.mark.parametrize("restart", [False, True])
def test_a_repeated_request_gets_the_same_bytes_and_spends_nothing(
    setup: SiteSetup, restart: bool
) -> None:
    site = Site(setup)
    first = site.train(make_request())
    other = make_request()
    other = replace(other, weights={name: 2 * w for name, w in other.weights.items()})
    for request in (make_request(), other):
        again = (Site(setup) if restart else site).train(request)
        assert again.status is Status.trained
        assert same_bytes(first, again)
        assert again.spend == first.spend
    assert states(setup) == [State.committed]


def test_a_request_repeated_at_the_same_time_is_trained_once(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_trainings = 0
    together = threading.Barrier(2)

    def slow(*arguments: Any) -> None:
        nonlocal num_trainings
        num_trainings += 1
        # a second training, if there is one, gets the time to come here
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(timeout=1)
        train_round(*arguments)

    site = Site(setup)
    monkeypatch.setattr(classifier_module, "train_round", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(site.train, [make_request(), make_request()])
    assert same_bytes(first, second)
    assert num_trainings == 1


def test_a_repeated_id_with_another_recipe_is_refused(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(setup)
    site.train(make_request())
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    reply = site.train(make_request(noise_multiplier=1.0))
    assert_refused(reply, Reason.ledger_unavailable)
    assert states(setup) == [State.committed]


def test_a_reply_lost_after_commit_is_refused_not_trained_anew(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(setup)
    spend = site.train(make_request()).spend
    for stored in setup.replies.glob("*"):
        stored.unlink()
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    reply = site.train(make_request())
    assert_refused(reply, Reason.bad_request)
    assert reply.spend == spend


def test_a_reply_of_an_earlier_round_is_refused_not_trained_anew(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(setup)
    for number in (1, 2):
        site.train(make_request(number))
    assert len(list(setup.replies.glob("*"))) == 1
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    assert_refused(site.train(make_request(1)), Reason.bad_request)
    assert site.train(make_request(2)).status is Status.trained


def test_a_damaged_stored_reply_is_refused_not_trained_anew(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(setup)
    site.train(make_request())
    (stored,) = setup.replies.glob("*")
    stored.write_bytes(stored.read_bytes()[:20])
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    assert_refused(site.train(make_request()), Reason.ledger_unavailable)


def test_an_abandoned_request_is_refused(setup: SiteSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request()
    with setup.open_ledger(Unit.patient) as ledger:
        ledger.reserve(
            request_id=request.request_id,
            events=[event_of(RECIPE)],
            purpose="train",
            budget=setup.budget,
        )
        ledger.abandon(request.request_id, "never begun")
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    reply = Site(setup).train(request)
    assert_refused(reply, Reason.bad_request)
    assert reply.spend is not None
    assert reply.spend["epsilon"] == 0


def test_a_request_past_the_budget_is_refused_and_costs_nothing(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = setup.budget.spent([event_of(RECIPE)])
    site = Site(replace(setup, budget=replace(setup.budget, epsilon=1.01 * cost)))
    spend = site.train(make_request(1)).spend
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    reply = site.train(make_request(2))
    assert_refused(reply, Reason.budget_exceeded)
    assert reply.spend == spend
    assert states(setup) == [State.committed]


def test_the_stricter_delta_measures(setup: SiteSetup) -> None:
    lax = Site(setup).train(make_request(1, delta=0.1)).spend
    assert lax is not None
    assert lax["delta"] == setup.budget.delta
    strict = Site(setup).train(make_request(2, delta=1e-6)).spend
    assert strict is not None
    assert strict["delta"] == 1e-6


def test_an_unavailable_ledger_is_a_refusal(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    setup.ledger.parent.parent.joinpath("blocked").write_text("")
    blocked = replace(setup, ledger=setup.ledger.parent.parent / "blocked" / "x.sqlite")
    reply = Site(blocked).train(make_request())
    assert_refused(reply, Reason.ledger_unavailable)
    assert reply.spend is None


def test_a_damaged_ledger_is_a_refusal(setup: SiteSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(setup)
    site.train(make_request())
    setup.ledger.with_suffix(".head").write_bytes(b"x")
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    assert_refused(site.train(make_request(2)), Reason.ledger_unavailable)


def test_a_ledger_of_other_patients_is_a_refusal(setup: SiteSetup) -> None:
    Site(setup).train(make_request())
    other = replace(setup, patient_hashes=patient_hashes(["someone"], bytes(32)))
    assert_refused(Site(other).train(make_request(2)), Reason.ledger_unavailable)


def _mismatches() -> dict[str, TrainRequest]:
    good = make_request()
    name = next(iter(good.weights))
    return {
        "frozen": replace(good, frozen_sha256="0" * 64),
        "shape": replace(good, weights={**good.weights, name: np.zeros((3, 3), np.float32)}),
        "missing": replace(good, weights={k: w for k, w in good.weights.items() if k != name}),
        "unknown": replace(good, weights={**good.weights, "more": np.zeros(1, np.float32)}),
        "nan": replace(
            good, weights={**good.weights, name: np.full_like(good.weights[name], np.nan)}
        ),
    }


@pytest.mark.parametrize("kind", ["frozen", "shape", "missing", "unknown", "nan"])
def test_a_model_that_does_not_fit_is_refused_before_anything_is_reserved(
    setup: SiteSetup, kind: str
) -> None:
    site = Site(setup)
    assert_refused(site.train(_mismatches()[kind]), Reason.model_mismatch)
    assert states(setup) == []
    assert site.train(make_request()).status is Status.trained


def request_for(model: SiteModel, **changes: Any) -> TrainRequest:
    built = model.build()
    return replace(
        make_request(**changes),
        frozen_sha256=models.frozen_sha256(built),
        weights=models.trainable_weights(built),
    )


def test_a_model_that_the_engine_does_not_cover_is_refused_before_anything_is_reserved(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its convolutions use weights computed from weights; with the head alone it is covered."""
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    config = ModelConfig(architecture="test_nfnet", patch_size=None)
    whole = replace(MODEL, config=config, finetune=FinetuneConfig(mode=FinetuneMode.all))
    site = Site(replace(setup, model=whole))
    assert_refused(site.train(request_for(whole)), Reason.model_mismatch)
    assert states(setup) == []
    monkeypatch.undo()
    head = replace(whole, finetune=FinetuneConfig(mode=FinetuneMode.head))
    reply = Site(replace(setup, model=head)).train(request_for(head))
    assert reply.status is Status.trained


@pytest.mark.parametrize("engine", EngineName)
def test_a_round_under_every_engine(setup: SiteSetup, engine: EngineName) -> None:
    reply = Site(setup).train(make_request(engine=engine.value, images_per_patient=1))
    assert reply.status is Status.trained


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "opacus_hooks", "clipping": "per_layer"},
        {"engine": "opacus_functorch", "clipping": "per_layer"},
        {"engine": "opacus_ghost", "clipping": "per_layer", "images_per_patient": 1},
        {"engine": "opacus_ghost", "images_per_patient": 2},
        {"engine": "opacus_ghost", "images_per_patient": 1, "augmentation_multiplicity": 2},
        {"engine": "opacus_hooks", "precision": "bf16"},
    ],
    ids=str,
)
def test_what_an_engine_does_not_do_is_refused_before_anything_is_reserved(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    assert_refused(Site(setup).train(make_request(**changes)), Reason.model_mismatch)
    assert states(setup) == []


@pytest.mark.parametrize("clipping", ["flat", "automatic", "per_layer"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_clipping_and_precision_costs_the_same_event(
    setup: SiteSetup, clipping: str, precision: str
) -> None:
    request = make_request(clipping=clipping, precision=precision, augmentation_multiplicity=2)
    reply = Site(setup).train(request)
    assert reply.status is Status.trained
    with setup.open_ledger(Unit.patient) as ledger:
        assert list(ledger.events()) == [event_of(RECIPE)]


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "opacus_hooks"},
        {"precision": "bf16"},
        {"clipping": "per_layer"},
        {"mechanism": "none", "noise_multiplier": 0.0},
    ],
    ids=str,
)
def test_a_model_warm_for_something_else_is_refused(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    site = Site(replace(setup, budget=replace(setup.budget, epsilon=math.inf)))
    assert site.train(make_request(1)).status is Status.trained
    with monkeypatch.context() as patch:
        patch.setattr(classifier_module, "train_round", no_training)
        assert_refused(site.train(make_request(2, **changes)), Reason.model_mismatch)
    assert states(setup) == [State.committed]
    assert site.train(make_request(2)).status is Status.trained


def test_a_site_with_too_little_memory_refuses_before_anything_is_reserved(
    setup: SiteSetup,
) -> None:
    assert_refused(
        Site(replace(setup, memory_bytes=1e3)).train(make_request()), Reason.model_mismatch
    )
    assert states(setup) == []


def test_a_sites_memory_bounds_what_is_held_at_once_and_nothing_else(
    setup: SiteSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int | None] = []

    def look_then_train(trainee: Any, *arguments: Any) -> None:
        held.append(trainee.most_images)
        train_round(trainee, *arguments)

    monkeypatch.setattr(classifier_module, "train_round", look_then_train)
    seeds = SimulatedSeeds(run_seed=1, site="hospital-1")
    replies = [
        Site(
            replace(
                setup,
                memory_bytes=limit,
                seeds=seeds,
                ledger=tmp_path / name / "x.sqlite",
                replies=tmp_path / name / "replies",
            )
        ).train(make_request(optimizer="sgd"))
        for name, limit in (("free", None), ("bound", 3e7), ("wide", 1e9))
    ]
    assert held[0] is None
    assert held[1] is not None
    assert held[2] is not None
    assert 1 <= held[1] < held[2]
    first = replies[0].weights
    assert first is not None
    for reply in replies[1:]:
        assert reply.weights is not None
        for name, value in reply.weights.items():
            assert np.allclose(value, first[name], atol=1e-5)


def test_another_unit_than_the_sites_is_refused_and_leaves_the_ledger_alone(
    setup: SiteSetup,
) -> None:
    site = Site(setup)
    assert_refused(site.train(make_request(unit="image")), Reason.bad_request)
    assert not setup.ledger.exists()
    assert site.train(make_request()).status is Status.trained


def test_a_site_may_count_by_image(setup: SiteSetup) -> None:
    setup = replace(setup, budget=replace(setup.budget, unit=Unit.image))
    reply = Site(setup).train(make_request(unit="image"))
    assert reply.status is Status.trained
    assert reply.spend is not None
    assert reply.spend["unit"] == "image"
    assert setup.counted(Unit.image).images_per_patient == 3


def test_without_privacy_the_release_is_recorded_as_infinite(setup: SiteSetup) -> None:
    free = replace(setup, budget=replace(setup.budget, epsilon=math.inf))
    reply = Site(free).train(make_request(mechanism="none", noise_multiplier=0.0))
    assert reply.status is Status.trained
    assert reply.spend is not None
    assert (reply.spend["epsilon"], reply.spend["private"]) == (None, False)
    with free.open_ledger(Unit.patient) as ledger:
        (event,) = ledger.events()
    assert isinstance(event, NonPrivateRelease)
    # whatever is private afterwards, the patients' guarantee is gone
    private = Site(free).train(make_request(2))
    assert private.spend is not None
    assert private.spend["epsilon"] is None


def test_training_without_privacy_is_refused_by_a_site_with_a_budget(
    setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_module, "train_round", no_training)
    request = make_request(mechanism="none", noise_multiplier=0.0)
    assert_refused(Site(setup).train(request), Reason.budget_exceeded)
    assert states(setup) == []


def test_privacy_is_not_taken_up_by_a_model_that_trained_without(setup: SiteSetup) -> None:
    site = Site(replace(setup, budget=replace(setup.budget, epsilon=math.inf)))
    site.train(make_request(mechanism="none", noise_multiplier=0.0))
    assert_refused(site.train(make_request(2)), Reason.model_mismatch)


def test_simulated_seeds_repeat_a_round_and_system_seeds_never(
    setup: SiteSetup, tmp_path: Path
) -> None:
    def train(name: str, seeds: Any) -> TrainReply:
        fresh = replace(
            setup,
            seeds=seeds,
            ledger=tmp_path / name / "ledger.sqlite",
            replies=tmp_path / name / "replies",
        )
        return Site(fresh).train(make_request())

    simulated = SimulatedSeeds(run_seed=1, site="hospital-1")
    assert same_bytes(train("a", simulated), train("b", simulated))
    assert not same_bytes(train("c", simulated), train("d", replace(simulated, site="h2")))
    assert not same_bytes(train("e", SystemSeeds()), train("f", SystemSeeds()))


def test_units_are_patients_or_single_images() -> None:
    cohort = make_cohort()
    assert units(cohort, "patient") is cohort
    images = units(cohort, "image")
    assert images.num_patients == len(images.labels) == 10
    assert images.patients.tolist() == list(range(10))
    assert images.images is cohort.images
    assert not set(images.patient_ids) & set(cohort.patient_ids)


def test_nothing_of_a_patient_is_in_the_repr_of_a_setup(setup: SiteSetup) -> None:
    text = repr(setup)
    assert not any(one in text for one in setup.patient_hashes)
    assert "p0" not in text


CONTROLLED = {"controlled": True, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.5}


def controlled_rounds(setup: SiteSetup, *, restart: bool) -> list[tuple[TrainRequest, TrainReply]]:
    """Three rounds of SCAFFOLD as a server would ask for them."""
    site = Site(setup)
    rounds: list[tuple[TrainRequest, TrainReply]] = []
    control: Weights = {}
    for number in (1, 2, 3):
        base = make_request(number, **CONTROLLED)
        weights = base.weights if not rounds else rounds[-1][1].weights
        assert weights is not None
        request = replace(base, weights=weights, control=control)
        reply = (Site(setup) if restart else site).train(request)
        assert reply.weights is not None
        rounds.append((request, reply))
        control = {n: np.full_like(v, 0.01 * number) for n, v in weights.items()}
    return rounds


def test_a_control_variate_is_a_function_of_what_was_sent_and_released(setup: SiteSetup) -> None:
    """So it is post-processing: nothing but the round's own event is charged for it."""
    own: Weights = {}
    for request, reply in controlled_rounds(setup, restart=False):
        assert reply.weights is not None
        length = np.float32(RECIPE.steps * 0.5)
        for name, y in reply.weights.items():
            zero = np.zeros_like(y)
            c, before = request.control.get(name, zero), own.get(name, zero)
            own[name] = (request.weights[name] - y) / length - (c - before)
    kept = Kept.last_in(setup.replies, "run")
    assert kept is not None
    assert kept.control.keys() == own.keys()
    for name, value in own.items():
        np.testing.assert_array_equal(kept.control[name], value)
    with setup.open_ledger(Unit.patient) as ledger:
        assert list(ledger.events()) == [event_of(RECIPE)] * 3


def test_a_restart_between_controlled_rounds_changes_no_bit(
    setup: SiteSetup, tmp_path: Path
) -> None:
    setup = replace(setup, seeds=SimulatedSeeds(run_seed=1, site="hospital-1"))
    other = replace(setup, ledger=tmp_path / "o" / "x.sqlite", replies=tmp_path / "o" / "replies")
    warm = controlled_rounds(setup, restart=False)
    cold = controlled_rounds(other, restart=True)
    for (_, first), (_, second) in zip(warm, cold, strict=True):
        assert same_bytes(first, second)


def test_the_control_variate_steers_the_steps(setup: SiteSetup, tmp_path: Path) -> None:
    """K steps of lr against c: the noise and the draws are those of the run without it."""
    setup = replace(setup, seeds=SimulatedSeeds(run_seed=1, site="hospital-1"))
    other = replace(setup, ledger=tmp_path / "o" / "x.sqlite", replies=tmp_path / "o" / "replies")
    request = make_request(1, noise_multiplier=50.0, max_grad_norm=1e-6, **CONTROLLED)
    control = {name: np.ones_like(value) for name, value in request.weights.items()}
    plain = Site(setup).train(request).weights
    steered = Site(other).train(replace(request, control=control)).weights
    assert plain is not None
    assert steered is not None
    for name, value in steered.items():
        np.testing.assert_allclose(value, plain[name] - RECIPE.steps * 0.5, atol=1e-4)


@pytest.mark.parametrize("wrong", ["shape", "nan"])
def test_a_control_variate_that_does_not_fit_is_refused(setup: SiteSetup, wrong: str) -> None:
    request = make_request(1, **CONTROLLED)
    bad = np.zeros(1, np.float32) if wrong == "shape" else np.float32(np.nan)
    control = {
        name: bad * np.ones_like(v) if wrong == "nan" else bad
        for name, v in request.weights.items()
    }
    reply = Site(setup).train(replace(request, control=control))
    assert_refused(reply, Reason.model_mismatch)
    assert states(setup) == []


def personal_request(number: int, model: SiteModel, layers: str) -> TrainRequest:
    built = model.build()
    own = models.local_names(built, Personal(layers))
    assert own
    weights = {n: v for n, v in models.trainable_weights(built).items() if n not in own}
    return replace(
        make_request(number, personal=layers),
        frozen_sha256=models.frozen_sha256(built),
        weights=weights,
    )


@pytest.mark.parametrize("layers", ["head", "norms"])
def test_layers_of_the_sites_own_are_trained_kept_and_never_sent(
    setup: SiteSetup, layers: str
) -> None:
    whole = replace(MODEL, finetune=FinetuneConfig(mode=FinetuneMode.all))
    setup = replace(setup, model=whole)
    first = models.trainable_weights(whole.build())
    seen: list[Weights] = []
    for number in (1, 2):
        request = personal_request(number, whole, layers)
        reply = Site(setup).train(request)
        assert reply.weights is not None
        assert reply.weights.keys() == request.weights.keys()
        kept = Kept.last_in(setup.replies, "run")
        assert kept is not None
        assert kept.local.keys() == first.keys() - request.weights.keys()
        seen.append(kept.local)
    for name, value in seen[0].items():
        assert not np.array_equal(value, first[name]), name
        # Round 2 went on from where round 1 left it: Adam's two steps take it this far at most.
        assert np.abs(seen[1][name] - value).max() <= 2 * 0.01 * 1.1
        assert not np.array_equal(seen[1][name], value)


def test_layers_that_stay_at_the_site_cannot_be_sent_to_it(setup: SiteSetup) -> None:
    whole = replace(MODEL, finetune=FinetuneConfig(mode=FinetuneMode.all))
    request = replace(
        personal_request(1, whole, "head"), weights=models.trainable_weights(whole.build())
    )
    assert_refused(Site(replace(setup, model=whole)).train(request), Reason.model_mismatch)

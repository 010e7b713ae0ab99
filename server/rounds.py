"""The rounds of a federation, over Flower's Grid and Strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from common.config import Config, Job, LateReplies, Trust
from common.errors import RunFailed
from common.messages import Reason, Recipe, SiteDescription, Status, TrainRequest, Weights
from common.secure_aggregation.roster import Roster as Identities
from common.seeds import SeedSource, SystemSeeds
from server.answer import Expected
from server.bounds import Bound, Move, bound
from server.checkpoint import Checkpoint, save_checkpoint
from server.end_state import EndState
from server.forecast import rounds_left
from server.inquiry import Asked, Inquiry
from server.mailbox import Mailbox
from server.quorum import Quorum
from server.recipe import Synthetic, plan
from server.records import late_records, left_for_good, site_records
from server.roster import Roster
from server.schedule import Schedule
from server.secure_aggregation.secure_sum import SecureSums, Summed
from server.site_dp import SiteNoise
from server.spend import SpendTracker
from server.strategy import Aggregator, Contribution


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a run begins: at its first round, or after a checkpoint.

    Attributes:
        config: of the run.
        sites: names of the approved sites.
        checkpoint: round 0 with the initial weights, or the last finished round.
        frozen_sha256: names the weights that do not travel.
        checkpoints: folder of checkpoints.
        evaluate: figures of a model on images the server may see.
        observe: told of everything that happens, as plain values.
        seeds: where the server's own noise comes from.
        synthetic: images that the run uses beside patients'.
        site_keys: by which sites sign their spend statements, where they have enrolled.
        identities: keys of the sites, where only sums of their updates are to be seen.
    """

    config: Config
    sites: tuple[str, ...]
    checkpoint: Checkpoint
    frozen_sha256: str
    checkpoints: Path
    evaluate: Callable[[Weights], dict[str, Any]]
    observe: Callable[[dict[str, Any]], None]
    seeds: SeedSource = field(default_factory=SystemSeeds)
    synthetic: Synthetic = field(default_factory=Synthetic)
    site_keys: Mapping[str, str] = field(default_factory=dict[str, str])
    identities: Identities | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run left behind."""

    state: EndState
    recipe: Recipe
    sites: Mapping[str, SiteDescription]
    checkpoint: Checkpoint = field(repr=False)


def run(grid: Grid, start: Start) -> Outcome:
    """Train the planned rounds and return the last model.

    A site that refuses for good (its budget, its rules, another model) leaves and is asked no
    more; the others go on while they are enough.

    Raises:
        RunFailed: if sites that would be enough are not there, or a round ends without enough
            sound updates though enough sites still take part. The last checkpoint stays, and a
            run that goes on from it asks for the same round.
    """
    return _Run(grid, start).to_its_end()


class _Run:
    """A run on its way."""

    def __init__(self, grid: Grid, start: Start) -> None:
        federation = start.config.federation
        self._start = start
        self._federation = federation
        self._checkpoint = start.checkpoint
        self._roster = Roster(
            grid,
            start.sites,
            known=start.checkpoint.patients,
            observe=start.observe,
            again_seconds=federation.retry_seconds,
        )
        self._mailbox: Mailbox[Asked] = Mailbox(grid)
        self._quorum = Quorum.of(federation)
        self._schedule = Schedule.of(start.config)
        self._spend = SpendTracker(start.checkpoint.history, start.site_keys)
        self._left = left_for_good(start.checkpoint.history)
        self._before: dict[str, Expected] = {}
        self._sums: SecureSums | None = None

    @property
    def _active(self) -> set[str]:
        return set(self._roster.approved) - set(self._left)

    def _drawn(self, number: int) -> set[str]:
        """The sites of a round, those that have left included."""
        return self._schedule.asked(number, self._roster.approved)

    def _enough(self, number: int, sites: set[str]) -> bool:
        """Whether ``sites`` are enough for a round, by the patients of all that it was to ask."""
        drawn = self._drawn(number)
        patients = {n: count for n, count in self._roster.patients.items() if n in drawn | sites}
        return self._quorum.met(sites, patients)

    def to_its_end(self) -> Outcome:
        recipe = self._begin()
        aggregator = self._aggregator(recipe)
        aggregator.restore(dict(self._checkpoint.strategy))
        self._sums = self._secure_sums(recipe)
        while self._has_work():
            self._hold_round(recipe, aggregator)
        state = self._end_state()
        if state is EndState.failed:
            raise RunFailed(f"too few sites still take part ({_listed(self._left)})")
        return Outcome(
            state=state,
            recipe=recipe,
            sites={
                name: SiteDescription(site=name, num_patients=count)
                for name, count in sorted(self._roster.patients.items())
            },
            checkpoint=self._checkpoint,
        )

    def _begin(self) -> Recipe:
        """Wait for all sites, settle for enough; the recipe, the same after every restart."""
        if self._checkpoint.recipe is None or self._has_work():
            nodes = self._roster.wait(
                self._federation.wait_seconds, lambda there: there >= self._active
            )
            if not self._quorum.met(set(nodes) & self._active, self._roster.patients):
                raise RunFailed(
                    f"{len(nodes)} of {len(self._roster.approved)} sites answered when the run "
                    f"began (federation.min_sites={self._quorum.min_sites}, "
                    f"federation.min_patient_share={self._quorum.min_patient_share:g})"
                )
        patients = self._roster.patients
        recipe = self._checkpoint.recipe or plan(
            self._start.config,
            num_patients=sum(patients.values()),
            synthetic=self._start.synthetic,
        )
        self._save(replace(self._checkpoint, recipe=recipe, patients=dict(patients)))
        self._start.observe(
            {
                "event": "planned",
                "sites": {name: patients.get(name) for name in sorted(self._roster.approved)},
                "rounds": self._federation.rounds,
                "first_round": self._checkpoint.round + 1,
                "recipe": recipe.to_dict(),
            }
        )
        return recipe

    def _aggregator(self, recipe: Recipe) -> Aggregator:
        strategy = self._start.config.strategy
        noise = None
        if strategy.site_dp.noise_multiplier is not None:
            noise = SiteNoise(strategy.site_dp, self._start.seeds)
        return Aggregator(strategy, recipe, noise)

    def _has_work(self) -> bool:
        return self._checkpoint.round < self._federation.rounds and self._can_go_on()

    def _can_go_on(self) -> bool:
        """Whether those who have not left are enough, if all of them train."""
        return self._quorum.met(self._active, self._roster.patients)

    def _can_hold(self, number: int) -> bool:
        """Whether those of a round's sites who have not left are enough for it."""
        return self._enough(number, self._drawn(number) & self._active)

    def _hold_round(self, recipe: Recipe, aggregator: Aggregator) -> None:
        began = time.monotonic()
        number, weights = self._checkpoint.round + 1, self._checkpoint.weights
        inquiry, nodes = self._ask(number, recipe, aggregator.control)
        summed = None
        if self._sums is None:
            inquiry.hold(nodes)
        else:
            summed = self._sums.hold(inquiry, nodes)
        answers = inquiry.answers
        self._left |= {n: str(a.reply.reason) for n, a in answers.items() if a.left}
        if summed is not None:
            contributions, used = {"": self._contribution(summed)}, set[str]()
        else:
            contributions, used = self._contributions(inquiry)
        there = set(contributions) if summed is None else set(summed.sites)
        enough = self._enough(number, there)
        if not enough and self._can_hold(number) and self._sums is None:
            reasons = {n: str(a.reply.reason or a.reply.status) for n, a in answers.items()}
            raise RunFailed(
                f"round {number}: {len(contributions) or 'no'} of {len(reasons)} sites gave a "
                f"sound update, which is not enough ({_listed(reasons)})"
            )
        if enough:
            weights = aggregator.next_weights(number, weights, contributions, self._roster.patients)
        looked_at = number % self._federation.evaluate_every == 0
        looked_at |= number == self._federation.rounds
        record = {
            "round": number,
            "seconds": round(time.monotonic() - began, 3),
            "aggregated": enough,
            "evaluation": self._start.evaluate(weights) if enough and looked_at else None,
            "sites": site_records(inquiry, self._checkpoint.history, set(self._left)),
        }
        record["late"] = late_records(inquiry, record["sites"], used)
        self._forecast(number, record["sites"], recipe)
        self._before = dict(inquiry.expected)
        self._save(
            replace(
                self._checkpoint,
                round=number,
                weights=weights,
                history=(*self._checkpoint.history, record),
                patients=dict(self._roster.patients),
                strategy=aggregator.state(),
            )
        )
        self._start.observe({"event": "round", **record})

    def _secure_sums(self, recipe: Recipe) -> SecureSums | None:
        """How rounds are summed, if sites are to be seen in sums alone."""
        federation, identities = self._federation, self._start.identities
        if federation.trust is Trust.local:
            return None
        if identities is None or identities.names != tuple(sorted(self._roster.approved)):
            raise RunFailed("federation.trust=secure_aggregation: the sites' keys are not known")
        return SecureSums.of(
            identities,
            federation.parties,
            recipe,
            self._checkpoint.weights,
            sum(self._roster.patients.values()),
        )

    def _contribution(self, summed: Summed) -> Contribution:
        patients = sum(self._roster.patients[name] for name in summed.sites)
        return Contribution(weights=summed.weights, num_patients=patients)

    def _ask(self, number: int, recipe: Recipe, control: Weights) -> tuple[Inquiry, dict[str, int]]:
        """What is to be asked of whom; nobody, where too many of the round's sites have left."""
        active, nodes = self._drawn(number) & self._active, dict[str, int]()
        if self._can_hold(number):
            nodes = self._roster.wait(
                self._federation.wait_seconds,
                lambda there: self._enough(number, there & active),
            )
        else:
            active = set()
        if self._federation.sites_per_round is not None:
            self._start.observe({"event": "asked", "round": number, "sites": sorted(active)})
        request = TrainRequest(
            run_id=self._checkpoint.run_id,
            round=number,
            recipe=recipe,
            frozen_sha256=self._start.frozen_sha256,
            weights=self._checkpoint.weights,
            control=control,
        )
        inquiry = Inquiry(
            request=request,
            sites=active,
            expected={
                name: self._expected(name, request)
                for name in sorted(active & set(self._roster.patients))
            },
            before=self._before,
            mailbox=self._mailbox,
            roster=self._roster,
            spend=self._spend,
            federation=self._federation,
            observe=self._start.observe,
        )
        return inquiry, {name: node for name, node in nodes.items() if name in active}

    def _expected(self, name: str, request: TrainRequest) -> Expected:
        num_patients = self._roster.patients[name]
        farthest = Bound()
        if self._start.config.job is Job.classify:  # generators have optimisers of their own
            farthest = bound(
                request.recipe,
                num_patients=num_patients,
                num_weights=sum(value.size for value in request.weights.values()),
                control=Move.from_zero(request.control).norm,
            )
        return Expected(
            site=name,
            num_patients=num_patients,
            recipe=request.recipe,
            weights=request.weights,
            bound=farthest,
        )

    def _contributions(self, inquiry: Inquiry) -> tuple[dict[str, Contribution], set[str]]:
        """Sound updates by site, one each, and the sites whose late one is among them.

        A late update of the round before stands in for a site that gave none in this one: it is
        the way from the model of then, added to the model of now.
        """
        found = {n: a.weights for n, a in inquiry.answers.items() if a.weights is not None}
        used: set[str] = set()
        if self._federation.late_replies is LateReplies.use:
            now = inquiry.request.weights
            for late in inquiry.late:
                moved = None if late.answer is None else late.answer.weights
                if moved is not None and late.site not in found and late.site not in self._left:
                    then = inquiry.before[late.site].weights
                    found[late.site] = {
                        n: (now[n] + (v - then[n])).astype(np.float32) for n, v in moved.items()
                    }
                    used.add(late.site)
        patients = self._roster.patients
        return {
            n: Contribution(weights=w, num_patients=patients[n]) for n, w in found.items()
        }, used

    def _forecast(self, number: int, sites: dict[str, dict[str, Any]], recipe: Recipe) -> None:
        """Note by site the last round that its budget will do for, if it is before the last."""
        for name, site in sites.items():
            planned = self._schedule.rounds_of(name, self._roster.approved)
            planned = [later for later in planned if later > number]
            left = ahead = len(planned)
            if name in self._left:
                left = 0
            elif site["epsilon"] is not None:
                left = rounds_left(
                    recipe,
                    epsilon=site["epsilon"],
                    budget=self._start.config.privacy.budget_of(name),
                    at_most=ahead,
                    before=self._start.synthetic.paid,
                )
            site["stops_after"] = [number, *planned][left] if left < ahead else None

    def _end_state(self) -> EndState:
        history = self._checkpoint.history
        done = not history or history[-1]["aggregated"]
        if self._sums is not None or self._federation.sites_per_round is not None:
            # a round that was discarded, or whose sites have left, is not held again
            done = not history or any(record["aggregated"] for record in history)
        if self._checkpoint.round == self._federation.rounds and done:
            everyone = all(
                site["status"] == Status.trained
                for record in history
                for site in record["sites"].values()
            )
            return EndState.completed if everyone else EndState.completed_with_missing_sites
        spent = {n for n, reason in self._left.items() if reason == Reason.budget_exceeded}
        if self._quorum.met(self._active | spent, self._roster.patients):
            return EndState.stopped_by_budget
        return EndState.failed

    def _save(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(checkpoint, self._start.checkpoints)
        self._checkpoint = checkpoint


def _listed(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {reasons[name]}" for name in sorted(reasons))

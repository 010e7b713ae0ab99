"""A site that takes part in secure sums: its keys, its masks, and what it computes."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.data.cohort import Cohort
from client.dp.training import RoundSeeds
from client.local_model import LocalTraining, ModelMismatch
from client.secure_aggregation.gradients import GivesGradients, summed
from client.site import BadRequest, Site
from common.errors import FedwardError, LedgerError, Refusal, UsageError
from common.files import write_atomically
from common.messages import Reason, SiteDescription, Status, TrainReply, TrainRequest
from common.privacy.keys import SiteKey
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.conversation import Question, SecureAnswer, Step
from common.secure_aggregation.discrete_gaussian import discrete_gaussian
from common.secure_aggregation.frame import pack, unpack
from common.secure_aggregation.mechanism import Mechanism
from common.secure_aggregation.randomness import RandomWords
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.rounding import into_ring
from common.secure_aggregation.site_round import SiteRound, begin
from common.secure_aggregation.task import check_task, event_of

_log = logging.getLogger("fedward.client")


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureSetup:
    """What a site needs for secure sums. Nothing of it comes from the server.

    Attributes:
        roster: who takes part, pinned at the site.
        key: the hospital's identity key.
        state: file for the round in progress; secret, readable by its owner only.
        least_colluders: rounds must bear at least so many sites that tell the server all.
    """

    roster: Roster
    key: SiteKey = field(repr=False)
    state: Path
    least_colluders: int = 0


class SecureSite:
    """Answers the questions of a secure sum beside those of any round.

    Guarantees:
        What leaves of a patient is one vector a round, with the site's share of noise in it, under
        masks; its event is in the ledger before the first gradient, and a round is done once. A
        question that repeats gets the answer that was given. The state of an earlier round is
        forgotten when another begins.
    """

    def __init__(self, site: Site, setup: SecureSetup) -> None:
        self._site = site
        self._setup = setup
        self._lock = threading.Lock()

    def describe(self) -> SiteDescription:
        """See `Site.describe`."""
        return self._site.describe()

    def train(self, request: TrainRequest) -> TrainReply:
        """Refused: a hospital that trusts sums alone shows nobody its own update."""
        del request
        site = self._site.describe()
        return TrainReply(
            site=site.site,
            status=Status.refused,
            num_patients=site.num_patients,
            reason=Reason.insecure,
        )

    def answer(self, data: bytes, request: TrainRequest | None = None) -> bytes:
        """The answer to one question of a round.

        Args:
            data: the question, from the server.
            request: model and recipe, with the question for the masked vector.
        """
        with self._lock:
            digest = hashlib.sha256(data).hexdigest()
            known = self._read()
            if known is not None and known.question == digest:
                return known.answer
            try:
                question = Question.from_bytes(data)
                state, body, spend = self._take(question, known, request)
            except (FedwardError, FloatingPointError) as error:
                _log.warning("a question of a secure sum was refused: %s", error)
                return self._refused(error, request)
            answer = self._worded(body=body, spend=spend)
            self._write(_Kept(question=digest, state=state, answer=answer))
            return answer

    def _take(
        self, question: Question, known: _Kept | None, request: TrainRequest | None
    ) -> tuple[SiteRound, bytes, dict[str, object] | None]:
        """Next state, the protocol's message and what was spent, if anything was."""
        setup = self._setup
        if question.step is Step.keys:
            if question.terms.max_colluders < setup.least_colluders:
                raise Aborted("fewer colluding sites are borne than this site asks for")
            name = self._site.describe().site
            return *begin(question.terms, setup.roster, name=name, key=setup.key), None
        if known is None or known.state.terms != question.terms:
            raise Aborted("this site has no part in that round")
        state = known.state
        match question.step:
            case Step.shares:
                return *state.share(question.body), None
            case Step.agreement:
                return *state.agree(question.body, setup.key), None
            case Step.reveal:
                return *state.reveal(question.body), None
            case Step.masked:
                return self._masked(question, state, request)

    def _masked(
        self, question: Question, state: SiteRound, request: TrainRequest | None
    ) -> tuple[SiteRound, bytes, dict[str, object]]:
        if request is None:
            raise Aborted("the question for a masked vector came without model and recipe")
        mechanism = question.mechanism
        check_task(request, mechanism, state.terms, self._setup.roster)
        state.received(question.body)  # nothing is charged for a round that cannot go on
        after: list[SiteRound] = []

        def compute(training: LocalTraining, cohort: Cohort, seeds: RoundSeeds) -> bytes:
            values = noisy_sum(training, cohort, request, mechanism, seeds)
            ring = into_ring(values, mechanism.modulus_bits)
            later, masked = state.mask(question.body, ring)
            after.append(later)
            return masked

        masked, spend = self._site.contribute(request, event_of(request.recipe, mechanism), compute)
        return after[0], masked, spend

    def _refused(self, error: Exception, request: TrainRequest | None) -> bytes:
        """A refusal; with what the site has spent, for the round may have been charged before."""
        match error:
            case Refusal():
                reason = Reason(error.code)
            case LedgerError():
                reason = Reason.ledger_unavailable
            case Aborted() | UsageError():
                reason = Reason.insecure
            case _:
                reason = Reason.internal_error
        spend = None if request is None else self._site.statement(request.recipe)
        return self._worded(reason=reason, spend=spend)

    def _worded(
        self,
        *,
        body: bytes = b"",
        reason: Reason | None = None,
        spend: dict[str, object] | None = None,
    ) -> bytes:
        about = self._site.describe()
        return SecureAnswer(
            site=about.site, num_patients=about.num_patients, reason=reason, spend=spend, body=body
        ).to_bytes()

    def _read(self) -> _Kept | None:
        try:
            return _Kept.from_bytes(self._setup.state.read_bytes())
        except FileNotFoundError:
            return None
        except (Aborted, KeyError, ValueError):
            # safe to go on without: what was charged is in the ledger, and new keys are drawn
            _log.warning("what was kept of a round is damaged, the site has no part in it any more")
            return None

    def _write(self, kept: _Kept) -> None:
        self._setup.state.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._setup.state, kept.to_bytes(), mode=0o600)
        folder = os.open(self._setup.state.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # an older state must not come back after power was lost
        finally:
            os.close(folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """The round in progress: the last question (its SHA-256), its answer, and what is known."""

    question: str
    state: SiteRound
    answer: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        state = self.state.to_bytes()
        header: dict[str, object] = {"question": self.question, "state": len(state)}
        return pack("kept", header, state + self.answer)

    @classmethod
    def from_bytes(cls, data: bytes) -> _Kept:
        header, body = unpack(data, "kept")
        size = int(str(header["state"]))
        state = SiteRound.from_bytes(body[:size])
        return cls(question=str(header["question"]), state=state, answer=body[size:])


def noisy_sum(
    training: LocalTraining,
    cohort: Cohort,
    request: TrainRequest,
    mechanism: Mechanism,
    seeds: RoundSeeds,
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """(num_weights,) whole numbers: the patients' sum and the site's share of noise.

    Private without masks: it carries one share of noise.

    Raises:
        ModelMismatch: if the model does not tell gradients of single patients.
    """
    if not isinstance(training, GivesGradients):
        raise ModelMismatch("secure aggregation trains classifiers")
    recipe = request.recipe
    sizes = {name: request.weights[name].size for name in sorted(request.weights)}
    if sum(sizes.values()) != mechanism.num_weights:
        raise BadRequest("the mechanism is for another number of weights")
    rng = np.random.default_rng(seeds.sampling).spawn(1)[0]
    total = summed(
        training.patient_gradients(cohort, recipe, seeds),
        sizes,
        max_grad_norm=recipe.max_grad_norm,
        clip=mechanism.clip,
        rng=rng,
    )
    words = RandomWords(seeds.noise)
    return total + discrete_gaussian(mechanism.share_std, mechanism.num_weights, words)

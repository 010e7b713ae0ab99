"""What sites are asked to sum in a round, and what that costs them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from common.errors import UsageError
from common.messages import Recipe, TrainRequest
from common.privacy.discrete import MOST_SHARE_STD
from common.privacy.events import SummedDiscreteGaussianSteps
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.mechanism import MOST_CLIP, Mechanism, Parties
from common.secure_aggregation.roster import Roster
from common.secure_aggregation.terms import Terms


def terms_of(
    request: TrainRequest, mechanism: Mechanism, parties: Parties, roster: Roster
) -> Terms:
    """The terms of the round in which ``request`` is answered."""
    return Terms(
        run_id=request.run_id,
        round=request.round,
        roster=roster.digest,
        num_sites=parties.num_sites,
        threshold=parties.threshold,
        max_dropouts=parties.max_dropouts,
        max_colluders=parties.max_colluders,
        num_weights=mechanism.num_weights,
        modulus_bits=mechanism.modulus_bits,
        subject=subject_of(request, mechanism),
    )


def subject_of(request: TrainRequest, mechanism: Mechanism) -> str:
    """SHA-256 over everything that decides what a site computes."""
    facts = {
        "run_id": request.run_id,
        "round": request.round,
        "recipe": request.recipe.to_dict(),
        "frozen_sha256": request.frozen_sha256,
        "mechanism": asdict(mechanism),
        "shapes": {name: list(value.shape) for name, value in sorted(request.weights.items())},
    }
    digest = hashlib.sha256(b"fedward secure aggregation subject v1\n")
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(request.weights):
        digest.update(request.weights[name].astype("<f4").tobytes())
    return digest.hexdigest()


def event_of(recipe: Recipe, mechanism: Mechanism) -> SummedDiscreteGaussianSteps:
    """What the round costs, under the trust that it asks for; `alone` says what without it."""
    return SummedDiscreteGaussianSteps(
        sampling_rate=recipe.sampling_rate,
        clip=mechanism.clip,
        num_weights=mechanism.num_weights,
        share_std=mechanism.share_std,
        num_shares=mechanism.num_shares,
        steps=recipe.steps,
    )


def check_recipe(recipe: Recipe) -> None:
    """Hold a recipe to what a sum over sites can do.

    Raises:
        UsageError: if it asks for more than one private step of gradient descent.
    """
    beyond = {
        "training without privacy": not recipe.private,
        f"{recipe.steps} steps in a round (one is all that a sum can hold)": recipe.steps != 1,
        f"the local optimiser {recipe.optimizer} (sgd is what a sum can do)": (
            recipe.optimizer != "sgd"
        ),
        "synthetic images among the patients": recipe.mixes,
        "terms against drift": recipe.controlled or recipe.proximal_mu > 0,
        "layers of the sites' own": recipe.personal != "none",
    }
    for what, asked in beyond.items():
        if asked:
            raise UsageError(f"federation.trust=secure_aggregation does not do {what}")


def check_task(request: TrainRequest, mechanism: Mechanism, terms: Terms, roster: Roster) -> None:
    """Hold what a server proposes to what it says it is; for the site.

    Raises:
        Aborted: if the mechanism has less noise than the recipe says, counts on other shares than
            the terms do, or the terms are about something else.
    """
    try:
        check_recipe(request.recipe)
        parties = Parties(
            num_sites=terms.num_sites,
            max_dropouts=terms.max_dropouts,
            max_colluders=terms.max_colluders,
        )
        event_of(request.recipe, mechanism)
    except ValueError as error:
        raise Aborted(f"the server asks for what cannot be: {error}") from error
    if mechanism.clip > MOST_CLIP or mechanism.share_std > MOST_SHARE_STD:
        # sums of squares are held in 64 bits, and noise is drawn with them
        raise Aborted("the mechanism's numbers are larger than can be computed exactly")
    num_weights = sum(value.size for value in request.weights.values())
    if (
        terms_of(request, mechanism, parties, roster) != terms
        or mechanism.num_shares != parties.num_shares
        or mechanism.num_weights != num_weights
        or mechanism.noise_multiplier < request.recipe.noise_multiplier
    ):
        raise Aborted("the terms of the round are not those of its recipe")

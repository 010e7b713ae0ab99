"""The rounds of a federation, over Flower's Grid and Strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from common import wire
from common.config import Config
from common.errors import RunFailed
from common.messages import (
    Reason,
    Recipe,
    SiteDescription,
    Status,
    TrainReply,
    TrainRequest,
    Weights,
)
from server.checkpoint import Checkpoint, save_checkpoint
from server.recipe import plan
from server.spend import SpendTracker
from server.strategy import aggregate, build

_POLL_SECONDS = 0.1


class EndState(StrEnum):
    """How a run ended."""

    completed = "completed"
    completed_with_missing_sites = "completed-with-missing-sites"
    stopped_by_budget = "stopped-by-budget"
    failed = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a run begins: at its first round, or after a checkpoint.

    Attributes:
        config: of the run.
        checkpoint: round 0 with the initial weights, or the last finished round.
        frozen_sha256: names the weights that do not travel.
        checkpoints: folder of checkpoints.
        evaluate: figures of a model on images the server may see, after each round.
        observe: told of everything that happens, as plain values.
    """

    config: Config
    checkpoint: Checkpoint
    frozen_sha256: str
    checkpoints: Path
    evaluate: Callable[[Weights], dict[str, Any]]
    observe: Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run left behind."""

    state: EndState
    recipe: Recipe
    sites: Mapping[str, SiteDescription]
    checkpoint: Checkpoint = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    reply: TrainReply
    message: Message | None = field(default=None, repr=False)
    problems: tuple[str, ...] = ()


def run(grid: Grid, start: Start) -> Outcome:
    """Train the planned rounds and return the last model.

    A site that refuses for its budget leaves the roster and is asked no more; the others go on.

    Raises:
        RunFailed: if sites are missing at the start, or a round ends without a trained site
            that did not refuse.
    """
    roster = _roster(grid, start)
    sites = {name: description for name, (_, description) in roster.items()}
    recipe = plan(start.config, num_patients=sum(s.num_patients for s in sites.values()))
    start.observe(
        {
            "event": "planned",
            "sites": {name: site.num_patients for name, site in sorted(sites.items())},
            "rounds": start.config.federation.rounds,
            "first_round": start.checkpoint.round + 1,
            "recipe": recipe.to_dict(),
        }
    )
    strategy = build(start.config.strategy)
    checkpoint = start.checkpoint
    gone = _refused_for_good(checkpoint.history)
    spend = SpendTracker(checkpoint.history)
    while checkpoint.round < start.config.federation.rounds:
        asked = {name: node for name, (node, _) in roster.items() if name not in gone}
        if not asked:
            break
        began = time.monotonic()
        number = checkpoint.round + 1
        question = _Asked(grid=grid, start=start, sites=sites, nodes=asked, spend=spend)
        answers = _ask(question, checkpoint, recipe)
        trained = {n: a.message for n, a in answers.items() if a.message is not None}
        gone |= {n for n, a in answers.items() if a.reply.reason is Reason.budget_exceeded}
        if not trained and not gone >= set(asked):
            raise RunFailed(f"round {number}: no site trained ({_reasons(answers)})")
        weights = checkpoint.weights
        if trained:
            weights = aggregate(strategy, number, trained)
        record = {
            "round": number,
            "seconds": round(time.monotonic() - began, 3),
            "evaluation": start.evaluate(weights) if trained else None,
            "sites": _site_records(answers, checkpoint.history, gone),
        }
        checkpoint = Checkpoint(
            run_id=checkpoint.run_id,
            round=number,
            weights=weights,
            history=(*checkpoint.history, record),
        )
        save_checkpoint(checkpoint, start.checkpoints)
        start.observe({"event": "round", **record})
    return Outcome(
        state=_end_state(checkpoint, start.config.federation.rounds),
        recipe=recipe,
        sites=sites,
        checkpoint=checkpoint,
    )


def _roster(grid: Grid, start: Start) -> dict[str, tuple[int, SiteDescription]]:
    """Ask every node who it is."""
    expected = start.config.federation.num_sites
    nodes = _wait_for_nodes(grid, expected, start.config.federation.timeout_seconds)
    content = wire.describe_content()
    messages = [wire.message(content, node=node, kind=wire.DESCRIBE) for node in nodes]
    roster: dict[str, tuple[int, SiteDescription]] = {}
    for node, reply in _collect(grid, messages, start.config.federation.timeout_seconds):
        try:
            description = wire.read_description(reply.content)
        except ValueError:  # an error instead of content, or content of another schema
            continue
        roster[description.site] = (node, description)
    if len(roster) < expected:
        raise RunFailed(f"{len(roster)} of {expected} sites answered when the run began")
    return roster


def _wait_for_nodes(grid: Grid, expected: int, timeout: float) -> list[int]:
    deadline = time.monotonic() + timeout
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < expected and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        nodes = sorted(grid.get_node_ids())
    return nodes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    grid: Grid
    start: Start
    sites: Mapping[str, SiteDescription]
    nodes: Mapping[str, int]
    spend: SpendTracker


def _ask(asked: _Asked, checkpoint: Checkpoint, recipe: Recipe) -> dict[str, _Answer]:
    start, nodes = asked.start, asked.nodes
    request = TrainRequest(
        run_id=checkpoint.run_id,
        round=checkpoint.round + 1,
        recipe=recipe,
        frozen_sha256=start.frozen_sha256,
        weights=checkpoint.weights,
    )
    content = wire.request_content(request)
    names = {node: name for name, node in nodes.items()}
    messages = [
        wire.message(content, node=nodes[name], kind=MessageType.TRAIN) for name in sorted(nodes)
    ]
    answers: dict[str, _Answer] = {}
    for node, message in _collect(asked.grid, messages, start.config.federation.timeout_seconds):
        name = names[node]
        if message.has_error():
            # Flower itself answers for a node that is gone.
            from_site = message.metadata.src_node_id == node
            answer = _failed(name, Reason.internal_error if from_site else Reason.no_reply)
        else:
            answer = _read_answer(asked, name, request, message)
        answers[name] = answer
        start.observe(
            {"event": "site", "round": request.round, "site": name, **_record(answer.reply)}
        )
    for name in nodes:
        answers.setdefault(name, _failed(name, Reason.no_reply))
    return answers


def _read_answer(asked: _Asked, name: str, request: TrainRequest, message: Message) -> _Answer:
    try:
        reply = wire.read_reply(message.content)
        _check_reply(reply, asked.sites[name], request)
    except ValueError:
        return _failed(name, Reason.bad_request)
    problems = asked.spend.take(reply, request.recipe)
    if problems:
        return replace(_failed(name, Reason.bad_statement), problems=problems)
    if reply.status is not Status.trained:
        return _Answer(reply=reply)
    # Only what was checked reaches the strategy, not what else the message carried.
    message.content = wire.reply_content(reply)
    return _Answer(reply=reply, message=message)


def _check_reply(reply: TrainReply, site: SiteDescription, request: TrainRequest) -> None:
    """Refuse a reply that would poison the average.

    Raises:
        ValueError: if it is another site's, if the site's weight in the average is not its number
            of patients, or if its weights are not finite values for the model that was sent.
    """
    if reply.site != site.site:
        raise ValueError("the reply names another site")
    if reply.weights is None:
        return
    if reply.num_patients != site.num_patients:
        raise ValueError("the number of patients changed during the run")
    shapes = {name: value.shape for name, value in request.weights.items()}
    if {name: value.shape for name, value in reply.weights.items()} != shapes:
        raise ValueError("weights of other names or shapes than the model's")
    if not all(np.isfinite(value).all() for value in reply.weights.values()):
        raise ValueError("weights are not finite")


def _failed(name: str, reason: Reason) -> _Answer:
    return _Answer(reply=TrainReply(site=name, status=Status.failed, num_patients=0, reason=reason))


def _collect(grid: Grid, messages: list[Message], timeout: float) -> Iterable[tuple[int, Message]]:
    """Replies as they arrive with the node that was asked, until all are there or time is over."""
    waiting = {number for number in grid.push_messages(messages) if number}
    nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    deadline = time.monotonic() + timeout
    while waiting and time.monotonic() < deadline:
        for reply in grid.pull_messages(waiting):
            number = reply.metadata.reply_to_message_id
            waiting.discard(number)
            yield nodes[number], reply
        if waiting:
            time.sleep(_POLL_SECONDS)


def _record(reply: TrainReply) -> dict[str, Any]:
    return {
        "status": reply.status.value,
        "epsilon": None if reply.spend is None else reply.spend["epsilon"],
        "reason": None if reply.reason is None else reply.reason.value,
    }


def _site_records(
    answers: Mapping[str, _Answer], history: tuple[dict[str, Any], ...], gone: set[str]
) -> dict[str, dict[str, Any]]:
    """This round's answers, and the last answer of sites that left before."""
    records = {
        name: {
            **_record(answer.reply),
            "statement": answer.reply.spend,
            "problems": list(answer.problems),
        }
        for name, answer in answers.items()
    }
    last = history[-1]["sites"] if history else {}
    for name in gone - set(records):
        records[name] = last[name]
    for name, record in records.items():
        if name in answers and answers[name].reply.spend is None and name in last:
            record["epsilon"] = last[name]["epsilon"]
    return dict(sorted(records.items()))


def _refused_for_good(history: tuple[dict[str, Any], ...]) -> set[str]:
    last = history[-1]["sites"] if history else {}
    return {n for n, site in last.items() if site["reason"] == Reason.budget_exceeded.value}


def _reasons(answers: Mapping[str, _Answer]) -> str:
    return ", ".join(f"{name}: {answers[name].reply.reason}" for name in sorted(answers))


def _end_state(checkpoint: Checkpoint, rounds: int) -> EndState:
    sites = checkpoint.history[-1]["sites"].values() if checkpoint.history else ()
    statuses = {site["status"] for site in sites}
    if Status.trained not in statuses or checkpoint.round < rounds:
        return EndState.stopped_by_budget
    everyone = all(
        site["status"] == Status.trained
        for record in checkpoint.history
        for site in record["sites"].values()
    )
    return EndState.completed if everyone else EndState.completed_with_missing_sites

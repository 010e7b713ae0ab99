"""Flower messages to and from `common.messages`: arrays as Flower arrays, the rest as JSON.

Nothing is pickled, and what does not fit the schema is refused.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from common.messages import (
    Reason,
    Recipe,
    SiteDescription,
    Status,
    TrainReply,
    TrainRequest,
    Weights,
)

SCHEMA = "fedward.message/1"
DESCRIBE = "query.describe"
WEIGHT_KEY = "num-patients"

_BODY, _WEIGHTS, _METRICS = "body", "weights", "metrics"


def to_arrays(weights: Weights) -> ArrayRecord:
    """Weights as Flower arrays, in order of names."""
    return ArrayRecord({name: Array(weights[name]) for name in sorted(weights)})


def from_arrays(record: ArrayRecord) -> Weights:
    """The inverse of `to_arrays`; every array becomes float32."""
    return {
        name: np.asarray(array.numpy(), dtype=np.float32).copy() for name, array in record.items()
    }


def describe_content() -> RecordDict:
    """Content of the question who a site is."""
    return RecordDict({_BODY: _body({})})


def request_content(request: TrainRequest) -> RecordDict:
    """Content of a training request."""
    fields = {
        "run_id": request.run_id,
        "round": request.round,
        "recipe": request.recipe.to_dict(),
        "frozen_sha256": request.frozen_sha256,
    }
    return RecordDict({_WEIGHTS: to_arrays(request.weights), _BODY: _body(fields)})


def read_request(content: RecordDict) -> TrainRequest:
    """The inverse of `request_content`.

    Raises:
        ValueError: if the content does not fit the schema.
    """
    body = _read_body(content)
    try:
        return TrainRequest(
            run_id=str(body["run_id"]),
            round=int(body["round"]),
            recipe=Recipe.from_dict(body["recipe"]),
            frozen_sha256=str(body["frozen_sha256"]),
            weights=from_arrays(content.array_records[_WEIGHTS]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"training request does not fit {SCHEMA}: {error!r}") from error


def description_content(description: SiteDescription) -> RecordDict:
    """Content of a site's description of itself."""
    return RecordDict({_BODY: _body(asdict(description))})


def read_description(content: RecordDict) -> SiteDescription:
    """The inverse of `description_content`.

    Raises:
        ValueError: if the content does not fit the schema.
    """
    body = _read_body(content)
    try:
        return SiteDescription(site=str(body["site"]), num_patients=int(body["num_patients"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"site description does not fit {SCHEMA}: {error!r}") from error


def reply_content(reply: TrainReply) -> RecordDict:
    """Content of a site's answer; trained weights travel with their weight in the average."""
    fields = {
        "site": reply.site,
        "status": reply.status.value,
        "num_patients": reply.num_patients,
        "reason": None if reply.reason is None else reply.reason.value,
        "spend": reply.spend,
    }
    content = RecordDict({_BODY: _body(fields)})
    if reply.weights is not None:
        content[_WEIGHTS] = to_arrays(reply.weights)
        content[_METRICS] = MetricRecord({WEIGHT_KEY: reply.num_patients})
    return content


def read_reply(content: RecordDict) -> TrainReply:
    """The inverse of `reply_content`.

    Raises:
        ValueError: if the content does not fit the schema.
    """
    body = _read_body(content)
    try:
        status = Status(body["status"])
        trained = status is Status.trained
        return TrainReply(
            site=str(body["site"]),
            status=status,
            num_patients=int(body["num_patients"]),
            reason=None if body["reason"] is None else Reason(body["reason"]),
            spend=body["spend"],
            weights=from_arrays(content.array_records[_WEIGHTS]) if trained else None,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"training reply does not fit {SCHEMA}: {error!r}") from error


def message(content: RecordDict, *, node: int, kind: str) -> Message:
    """A message of ``kind`` to a Flower node."""
    return Message(content=content, message_type=kind, dst_node_id=node)


def _body(fields: dict[str, Any]) -> ConfigRecord:
    return ConfigRecord({"json": json.dumps({"schema": SCHEMA, **fields}, allow_nan=False)})


def _read_body(content: RecordDict) -> dict[str, Any]:
    try:
        body = json.loads(str(content.config_records[_BODY]["json"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"message does not fit {SCHEMA}: {error!r}") from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise ValueError(f"message is not of {SCHEMA}")
    return body

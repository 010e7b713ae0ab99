"""Flower messages to and from `common.messages`: arrays as Flower arrays, the rest as JSON.

Nothing is pickled, and what does not fit the schema is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from io import BytesIO
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

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
UNAPPROVED_ERROR = 901  # of a Flower message that a gate answers; Flower's own are below 100
SECURE = "query.secure"
WEIGHT_KEY = "num-patients"

_BODY, _WEIGHTS, _METRICS, _CONTROL = "body", "weights", "metrics", "control"
_SECURE = "secure"


def to_arrays(weights: Weights) -> ArrayRecord:
    """Weights as Flower arrays, in order of names."""
    return ArrayRecord({name: Array(weights[name]) for name in sorted(weights)})


def from_arrays(record: ArrayRecord) -> Weights:
    """The inverse of `to_arrays`; every array becomes float32.

    Raises:
        ValueError: if an array is not what `to_arrays` writes.
    """
    return {name: _read_array(name, array) for name, array in record.items()}


def _read_array(name: str, array: Array) -> NDArray[np.float32]:
    """One array; its size is checked before memory is taken for it."""
    try:
        file = BytesIO(array.data)
        if npy.read_magic(file) != (1, 0):
            raise ValueError("not version 1.0 of the npy format")
        shape, _, dtype = npy.read_array_header_1_0(file)
        if dtype.kind != "f":
            raise ValueError(f"type {dtype}, expected floating point")
        if len(array.data) - file.tell() != math.prod(shape) * dtype.itemsize:
            raise ValueError("data of another size than its header says")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            return np.array(array.numpy(), dtype=np.float32)
    except Exception as error:  # numpy's parser raises whatever its parts raise
        raise ValueError(f"array {name!r} does not fit {SCHEMA}: {error}") from error


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
    content = RecordDict({_WEIGHTS: to_arrays(request.weights), _BODY: _body(fields)})
    if request.control:
        content[_CONTROL] = to_arrays(request.control)
    return content


def read_request(content: RecordDict) -> TrainRequest:
    """The inverse of `request_content`.

    Raises:
        ValueError: if the content does not fit the schema.
    """
    body = _read_body(content)
    try:
        return TrainRequest(
            run_id=_text(body, "run_id"),
            round=_count(body, "round", least=1),
            recipe=_recipe(body),
            frozen_sha256=_text(body, "frozen_sha256"),
            weights=from_arrays(content.array_records[_WEIGHTS]),
            control=from_arrays(content.array_records.get(_CONTROL, ArrayRecord())),
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
        return SiteDescription(
            site=_text(body, "site"), num_patients=_count(body, "num_patients", least=1)
        )
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
            site=_text(body, "site"),
            status=status,
            num_patients=_count(body, "num_patients", least=1 if trained else 0),
            reason=None if body["reason"] is None else Reason(body["reason"]),
            spend=_spend(body),
            weights=from_arrays(content.array_records[_WEIGHTS]) if trained else None,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"training reply does not fit {SCHEMA}: {error!r}") from error


def secure_content(data: bytes, request: TrainRequest | None = None) -> RecordDict:
    """Content of a question or an answer of a secure sum, whose bytes are ``data``.

    Bytes travel as an array, which Flower cuts into pieces however long it is.
    """
    content = RecordDict() if request is None else request_content(request)
    content[_SECURE] = ArrayRecord({_SECURE: Array(np.frombuffer(data, dtype=np.uint8))})
    return content


def read_secure(content: RecordDict) -> tuple[bytes, TrainRequest | None]:
    """The inverse of `secure_content`.

    Raises:
        ValueError: if the content does not fit the schema.
    """
    try:
        array = content.array_records[_SECURE][_SECURE]
        file = BytesIO(array.data)
        if npy.read_magic(file) != (1, 0):
            raise ValueError("not version 1.0 of the npy format")
        shape, _, dtype = npy.read_array_header_1_0(file)
        data = file.read()
        if dtype != np.uint8 or shape != (len(data),):
            raise ValueError("not a sequence of bytes")
    except Exception as error:  # numpy's parser raises whatever its parts raise
        raise ValueError(f"message does not fit {SCHEMA}: {type(error).__name__}") from error
    has_request = _WEIGHTS in content.array_records
    return data, read_request(content) if has_request else None


def message(content: RecordDict, *, node: int, kind: str) -> Message:
    """A message of ``kind`` to a Flower node."""
    return Message(content=content, message_type=kind, dst_node_id=node)


def _body(fields: dict[str, Any]) -> ConfigRecord:
    return ConfigRecord({"json": json.dumps({"schema": SCHEMA, **fields}, allow_nan=False)})


def _read_body(content: RecordDict) -> dict[str, Any]:
    try:
        text = content.config_records[_BODY]["json"]
        if not isinstance(text, str):
            raise TypeError("not text")
        body: object = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"message does not fit {SCHEMA}: {type(error).__name__}") from error
    fields = _fields(body)
    if fields.get("schema") != SCHEMA:
        raise ValueError(f"message is not of {SCHEMA}")
    return fields


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text}: not a finite number")
    return value


def _fields(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"message is not of {SCHEMA}")
    return cast("dict[str, Any]", value)


def _text(body: dict[str, Any], name: str) -> str:
    if not isinstance(body[name], str):
        raise TypeError(f"{name} is not text")
    return body[name]


def _count(body: dict[str, Any], name: str, *, least: int) -> int:
    value = body[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TypeError(f"{name} is not a number of at least {least}")
    return value


def _recipe(body: dict[str, Any]) -> Recipe:
    fields = _fields(body["recipe"])
    for name in ("steps", "images_per_patient", "physical_batch"):
        _count(fields, name, least=1)
    return Recipe.from_dict(fields)


def _spend(body: dict[str, Any]) -> dict[str, Any] | None:
    """A spend statement; an infinite epsilon is null."""
    if body["spend"] is None:
        return None
    spend = _fields(body["spend"])
    epsilon = spend["epsilon"]
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    if epsilon is not None and (not number or epsilon < 0):
        raise TypeError("epsilon is not a number of at least 0")
    return spend

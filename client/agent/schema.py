"""What passes the agent's socket: one safetensors file each way, its text in the metadata.

The metadata holds one entry, ``fedward``: JSON of a closed set of fields. Arrays are float32 and
finite, named ``weights/...`` or ``control/...``. A message about a secure sum has, beside these,
the bytes of its protocol as one array ``secure``. Nothing is pickled. Every field of a request is
checked and bounded before the site sees it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.messages import (
    Reason,
    Recipe,
    SiteDescription,
    Status,
    TrainReply,
    TrainRequest,
    Weights,
)
from common.secure_aggregation import conversation
from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.conversation import SecureAnswer, Step
from common.secure_aggregation.task import event_of

SCHEMA = "fedward.agent/1"
MEDIA_TYPE = "application/vnd.fedward.agent.v1+safetensors"
TEXT_BYTES = 1_000_000  # at most, for names, shapes and fields of one message

_ENTRY = "fedward"
_SECURE = "secure"
_REQUEST = {"run_id", "round", "recipe", "frozen_sha256"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_MOST = {  # beyond these a recipe is no recipe, whatever a policy says
    "steps": 1_000_000,
    "images_per_patient": 1_000,
    "physical_batch": 100_000,
    "augmentation_multiplicity": 100,
}
_MOST_ROUNDS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A request as it came in: the code that asks (a claim), and what it asks.

    Attributes:
        bundle: SHA-256 of that code.
        train: model and recipe, where something is to be computed.
        sums: the step of a secure sum that is asked for, if it is one.
        data: the bytes of ``sums`` as the server wrote them.
    """

    bundle: str
    train: TrainRequest | None = field(default=None, repr=False)
    sums: conversation.Question | None = field(default=None, repr=False)
    data: bytes = field(default=b"", repr=False)


def describe_bytes(bundle: str) -> bytes:
    """The question who the site is."""
    return _pack({"kind": "describe", "bundle": bundle}, {})


def request_bytes(request: TrainRequest, bundle: str) -> bytes:
    """A training request of the bundle with this SHA-256."""
    return _pack({"kind": "train", "bundle": bundle, **_request_fields(request)}, _arrays(request))


def secure_bytes(data: bytes, request: TrainRequest | None, bundle: str) -> bytes:
    """A question of a secure sum; with model and recipe where a masked vector is asked for."""
    fields: dict[str, Any] = {"kind": "secure", "bundle": bundle}
    arrays = {} if request is None else _arrays(request)
    if request is not None:
        fields |= _request_fields(request)
    return _pack(fields, arrays, data)


def read_question(content: bytes, kind: str) -> Question:
    """The inverse of `describe_bytes`, `request_bytes` (kind ``train``) and `secure_bytes`.

    Raises:
        ValueError: The content does not fit the schema.
    """
    body, arrays, data = _unpack(content)
    sums = _sums(data) if kind == "secure" else None
    computes = kind == "train" or (sums is not None and sums.step is Step.masked)
    if set(body) != {"schema", "kind", "bundle"} | (_REQUEST if computes else set()):
        raise ValueError(f"not a question of kind {kind} of {SCHEMA}")
    if body["kind"] != kind or (data and sums is None):
        raise ValueError(f"not a question of kind {kind} of {SCHEMA}")
    bundle = _matching(body, "bundle", _SHA256)
    if arrays and not computes:
        raise ValueError("a question that has nothing computed has no arrays")
    request = _request(body, arrays) if computes else None
    if request is not None and sums is not None:
        event_of(request.recipe, sums.mechanism)  # raises if there is no such mechanism
    return Question(bundle=bundle, train=request, sums=sums, data=data)


def _sums(data: bytes) -> conversation.Question:
    try:
        found = conversation.Question.from_bytes(data)
    except Aborted as error:
        raise ValueError(str(error)) from error
    terms = {"run_id": found.terms.run_id, "round": found.terms.round}
    _matching(terms, "run_id", _RUN_ID)
    _whole(terms, "round", least=1, most=_MOST_ROUNDS)
    return found


def _request_fields(request: TrainRequest) -> dict[str, Any]:
    return {
        "run_id": request.run_id,
        "round": request.round,
        "recipe": request.recipe.to_dict(),
        "frozen_sha256": request.frozen_sha256,
    }


def _arrays(request: TrainRequest) -> Weights:
    arrays = {f"weights/{name}": value for name, value in request.weights.items()}
    return arrays | {f"control/{name}": value for name, value in request.control.items()}


def _request(body: Mapping[str, Any], arrays: Weights) -> TrainRequest:
    recipe = body["recipe"]
    if not isinstance(recipe, dict):
        raise ValueError("recipe: not fields")
    for name, most in _MOST.items():
        _whole(cast("dict[str, Any]", recipe), name, least=1, most=most)
    parts = _parts(arrays, "weights", "control")
    if not parts["weights"]:
        raise ValueError("a training request has weights")
    return TrainRequest(
        run_id=_matching(body, "run_id", _RUN_ID),
        round=_whole(body, "round", least=1, most=_MOST_ROUNDS),
        recipe=Recipe.from_dict(cast("dict[str, Any]", recipe)),
        frozen_sha256=_matching(body, "frozen_sha256", _SHA256),
        weights=parts["weights"],
        control=parts["control"],
    )


def description_bytes(description: SiteDescription) -> bytes:
    """A site's description of itself."""
    return _pack(
        {
            "kind": "description",
            "site": description.site,
            "num_patients": description.num_patients,
        },
        {},
    )


def read_description(content: bytes) -> SiteDescription:
    """The inverse of `description_bytes`.

    Raises:
        ValueError: The content does not fit the schema.
    """
    body, arrays, data = _unpack(content)
    if set(body) != {"schema", "kind", "site", "num_patients"} or arrays or data:
        raise ValueError(f"not a description of {SCHEMA}")
    return SiteDescription(
        site=_matching(body, "site", re.compile(r".{1,200}")),
        num_patients=_whole(body, "num_patients", least=1, most=2**53),
    )


def reply_bytes(reply: TrainReply) -> bytes:
    """A site's answer to a training request."""
    fields = {
        "kind": "reply",
        "site": reply.site,
        "status": reply.status.value,
        "num_patients": reply.num_patients,
        "reason": None if reply.reason is None else reply.reason.value,
        "spend": reply.spend,
    }
    weights = reply.weights or {}
    return _pack(fields, {f"weights/{name}": value for name, value in weights.items()})


def read_reply(content: bytes) -> TrainReply:
    """The inverse of `reply_bytes`.

    Raises:
        ValueError: The content does not fit the schema.
    """
    body, arrays, data = _unpack(content)
    if set(body) != {"schema", "kind", "site", "status", "num_patients", "reason", "spend"} or data:
        raise ValueError(f"not a reply of {SCHEMA}")
    status, spend = Status(body["status"]), body["spend"]
    if spend is not None and not isinstance(spend, dict):
        raise ValueError("spend: not a statement")
    return TrainReply(
        site=_matching(body, "site", re.compile(r".{1,200}")),
        status=status,
        num_patients=_whole(body, "num_patients", least=0, most=2**53),
        reason=None if body["reason"] is None else Reason(body["reason"]),
        spend=cast("dict[str, Any] | None", spend),
        weights=_parts(arrays, "weights")["weights"] if status is Status.trained else None,
    )


def secure_reply_bytes(answer: bytes) -> bytes:
    """A site's answer to a question of a secure sum."""
    return _pack({"kind": "secure_reply"}, {}, answer)


def read_secure_reply(content: bytes) -> bytes:
    """The inverse of `secure_reply_bytes`: bytes that are a `SecureAnswer`.

    Raises:
        ValueError: The content does not fit the schema.
    """
    body, arrays, data = _unpack(content)
    if set(body) != {"schema", "kind"} or body["kind"] != "secure_reply" or arrays:
        raise ValueError(f"not a reply about a secure sum of {SCHEMA}")
    try:
        SecureAnswer.from_bytes(data)
    except Aborted as error:
        raise ValueError(str(error)) from error
    return data


def _pack(fields: Mapping[str, Any], arrays: Weights, data: bytes = b"") -> bytes:
    text = json.dumps({"schema": SCHEMA, **fields}, allow_nan=False)
    whole: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(value) for name, value in arrays.items()
    }
    if data:
        whole[_SECURE] = np.frombuffer(data, dtype=np.uint8)
    return save(whole, metadata={_ENTRY: text})


def _unpack(content: bytes) -> tuple[dict[str, Any], Weights, bytes]:
    """The fields, the arrays and the protocol's bytes of a message."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(TEXT_BYTES, len(content) - 8):
        raise ValueError("not a safetensors file, or its text is too long")
    try:
        header: Any = json.loads(content[8 : 8 + size])
        metadata = header.get("__metadata__", {})
        if set(metadata) != {_ENTRY}:
            raise ValueError("not a message: no fields")
        types = {name: spec["dtype"] for name, spec in header.items() if name != "__metadata__"}
        if types.pop(_SECURE, "U8") != "U8" or set(types.values()) - {"F32"}:
            raise ValueError("arrays must be of 32-bit floating point")
        body: Any = json.loads(metadata[_ENTRY], parse_constant=_no_constant)
        arrays: Weights = load(content)
        data = arrays.pop(_SECURE).tobytes() if _SECURE in arrays else b""
        if not data and _SECURE in header:
            raise ValueError("nothing where the bytes of a secure sum should be")
    except (SafetensorError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a message of {SCHEMA}: {type(error).__name__}") from error
    if not isinstance(body, dict) or cast("dict[str, Any]", body).get("schema") != SCHEMA:
        raise ValueError(f"not a message of {SCHEMA}")
    if not all(np.isfinite(value).all() for value in arrays.values()):
        raise ValueError("arrays must be finite")
    return cast("dict[str, Any]", body), arrays, data


def _no_constant(text: str) -> float:
    raise ValueError(f"{text}: not a number")


def _parts(arrays: Weights, *names: str) -> dict[str, Weights]:
    """Arrays by the part that their names begin with."""
    parts: dict[str, dict[str, NDArray[np.float32]]] = {name: {} for name in names}
    for key, value in arrays.items():
        part, _, name = key.partition("/")
        if part not in parts or not name:
            raise ValueError("an array is neither of the weights nor of the control variate")
        parts[part][name] = value
    return parts


def _matching(body: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = body[name]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{name}: not as {SCHEMA} has it")
    return value


def _whole(body: Mapping[str, Any], name: str, *, least: int, most: int) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name}: must be a whole number from {least} to {most}")
    return value


def most_bytes(weights: Weights) -> int:
    """The largest honest request or reply about a model with these trainable ``weights``."""
    return 2 * sum(math.prod(value.shape) * 4 for value in weights.values()) + 2 * TEXT_BYTES

"""The agent under schemathesis: whatever is posted, an answer of the list and nothing charged."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from client.agent import schema, service
from common.messages import Reason

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = ("schema", "kind", "bundle", "run_id", "round", "recipe", "frozen_sha256")


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Bytes; frames with any text; and messages of which a few fields are not as they should be."""
    kind = draw(st.sampled_from(["bytes", "frame", "fields"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "frame":
        text = draw(st.binary(max_size=200))
        return struct.pack("<Q", draw(st.just(len(text)) | st.integers(0, 2**64 - 1))) + text
    fields = {
        "schema": schema.SCHEMA,
        "kind": draw(st.sampled_from(["describe", "train", "secure"])),
    }
    fields |= draw(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES))
    arrays: dict[str, np.ndarray] = {
        "weights/head": np.zeros(draw(st.integers(0, 4)), np.float32),
        "secure": np.frombuffer(b"FWSA" + draw(st.binary(max_size=60)), np.uint8),
    }
    arrays = {name: arrays[name] for name in draw(st.sets(st.sampled_from(sorted(arrays))))}
    return save(arrays, metadata={"fedward": json.dumps(fields)})


schemathesis.openapi.media_type(schema.MEDIA_TYPE, messages())


@pytest.mark.parametrize("path", ["/v1/describe", "/v1/train", "/v1/secure"])
def test_whatever_is_posted_is_answered_from_the_list_and_charged_to_nobody(
    place: Any, request_of: Any, path: str
) -> None:
    app = service.build(place.start(), most_bytes=schema.most_bytes(request_of().weights))
    api = schemathesis.openapi.from_dict(app.openapi())
    api.app = app
    seen: set[tuple[int, str]] = set()

    @given(case=api[path]["POST"].as_strategy())
    @settings(
        max_examples=60,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        answer = case.call_and_validate(checks=[not_a_server_error, status_code_conformance])
        reason = answer.headers.get("x-fedward-reason", [""])
        seen.add((answer.status_code, reason[0]))

    ask()
    assert (400, Reason.bad_request.value) in seen
    assert {code for code, _ in seen} <= {400, 403, 413}
    assert place.requests_charged() == 0
    assert all(row["decision"] == "refused" for row in place.rows("answered"))

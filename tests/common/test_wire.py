from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common import wire
from common.messages import (
    Reason,
    Recipe,
    SiteDescription,
    Status,
    TrainReply,
    TrainRequest,
    Weights,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-6, 1e6)
counts = st.integers(1, 10**9)
names = st.text(min_size=1, max_size=12)
weights_maps = st.dictionaries(
    names,
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)),
    max_size=3,
)
recipes = st.builds(
    Recipe,
    mechanism=st.just("dp_sgd"),
    unit=st.sampled_from(["patient", "image"]),
    accountant=names,
    delta=st.floats(1e-12, 0.5),
    sampling_rate=st.floats(1e-6, 1.0),
    noise_multiplier=positive,
    steps=counts,
    max_grad_norm=positive,
    images_per_patient=counts,
    optimizer=st.sampled_from(["sgd", "adam"]),
    learning_rate=positive,
    physical_batch=counts,
)
requests = st.builds(
    TrainRequest,
    run_id=names,
    round=counts,
    recipe=recipes,
    frozen_sha256=st.text(max_size=12),
    weights=weights_maps,
)
spends = st.none() | st.fixed_dictionaries(
    {"epsilon": st.none() | st.floats(0, 1e6)}, optional={"head": st.text(max_size=5)}
)
trained = st.builds(
    TrainReply,
    site=names,
    status=st.just(Status.trained),
    num_patients=counts,
    spend=spends,
    weights=weights_maps,
)
others = st.builds(
    TrainReply,
    site=names,
    status=st.sampled_from([Status.refused, Status.failed]),
    num_patients=st.integers(0, 10**9),
    reason=st.sampled_from(Reason),
    spend=spends,
)


def same_weights(one: Weights | None, other: Weights | None) -> bool:
    if one is None or other is None:
        return one is other
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype == np.float32
        and np.array_equal(one[name], other[name], equal_nan=True)
        for name in one
    )


def fields(message: Any) -> dict[str, Any]:
    return {n: getattr(message, n) for n in type(message).__dataclass_fields__ if n != "weights"}


def over_the_network(content: RecordDict) -> RecordDict:
    """What the other side gets: plain bytes in between."""
    copy = RecordDict()
    for name, record in content.array_records.items():
        copy[name] = ArrayRecord(
            {
                key: Array(dtype=a.dtype, shape=tuple(a.shape), stype=a.stype, data=bytes(a.data))
                for key, a in record.items()
            }
        )
    for name, record in content.config_records.items():
        copy[name] = ConfigRecord(dict(record))
    for name, record in content.metric_records.items():
        copy[name] = MetricRecord(dict(record))
    return copy


@settings(deadline=None)
@given(requests)
def test_a_request_comes_through(request: TrainRequest) -> None:
    found = wire.read_request(over_the_network(wire.request_content(request)))
    assert fields(found) == fields(request)
    assert same_weights(found.weights, request.weights)


@settings(deadline=None)
@given(trained | others)
def test_a_reply_comes_through(reply: TrainReply) -> None:
    content = wire.reply_content(reply)
    found = wire.read_reply(over_the_network(content))
    assert fields(found) == fields(reply)
    assert same_weights(found.weights, reply.weights)
    assert len(content.metric_records) == len(content.array_records)
    if reply.weights is not None:
        assert content.metric_records["metrics"][wire.WEIGHT_KEY] == reply.num_patients


@given(names, counts)
def test_a_description_comes_through(site: str, num_patients: int) -> None:
    description = SiteDescription(site=site, num_patients=num_patients)
    assert wire.read_description(wire.description_content(description)) == description


def test_arrays_travel_in_order_of_names_and_are_copies() -> None:
    weights = {"b": np.zeros(2, np.float32), "a": np.asfortranarray(np.ones((2, 3), np.float32))}
    record = wire.to_arrays(weights)
    assert list(record) == ["a", "b"]
    found = wire.from_arrays(record)
    found["b"][0] = 5
    assert weights["b"][0] == 0
    assert wire.from_arrays(record)["b"][0] == 0


def test_other_floats_become_float32() -> None:
    record = ArrayRecord({"a": Array(np.float64([0.1, 1e300]))})
    found = wire.from_arrays(record)["a"]
    assert found.dtype == np.float32
    assert found[0] == np.float32(0.1)
    assert np.isinf(found[1])


REQUEST = TrainRequest(
    run_id="r",
    round=2,
    recipe=Recipe(
        mechanism="dp_sgd",
        unit="patient",
        accountant="pld",
        delta=1e-5,
        sampling_rate=0.25,
        noise_multiplier=1.0,
        steps=5,
        max_grad_norm=1.0,
        images_per_patient=2,
        optimizer="adam",
        learning_rate=1e-3,
        physical_batch=8,
    ),
    frozen_sha256="f",
    weights={"w": np.ones(3, np.float32)},
)
REPLY = TrainReply(
    site="s",
    status=Status.trained,
    num_patients=9,
    spend={"epsilon": 1.5},
    weights={"w": np.ones(3, np.float32)},
)
KINDS: dict[str, tuple[RecordDict, Callable[[RecordDict], Any]]] = {
    "request": (wire.request_content(REQUEST), wire.read_request),
    "reply": (wire.reply_content(REPLY), wire.read_reply),
    "description": (
        wire.description_content(SiteDescription(site="s", num_patients=3)),
        wire.read_description,
    ),
}


def changed(kind: str, change: Callable[[dict[str, Any]], Any]) -> RecordDict:
    content = over_the_network(KINDS[kind][0])
    body = json.loads(str(content.config_records["body"]["json"]))
    change(body)
    content["body"] = ConfigRecord({"json": json.dumps(body)})
    return content


def refused(kind: str, content: RecordDict) -> None:
    with pytest.raises(
        ValueError, match=r"fedward\.message/1|recipe|noise_multiplier|is not a valid"
    ):
        KINDS[kind][1](content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schema", [None, "", "fedward.message/2", 1, ["fedward.message/1"]])
def test_another_schema_is_refused(kind: str, schema: object) -> None:
    refused(kind, changed(kind, lambda body: body.update(schema=schema)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_needed(kind: str) -> None:
    body = json.loads(str(KINDS[kind][0].config_records["body"]["json"]))
    for name in body:
        refused(kind, changed(kind, lambda body, name=name: body.pop(name)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"x"',
        "NaN",
        '{"schema": "fedward.message/1", "site": "s", "num_patients": Infinity}',
        '{"schema": "fedward.message/1", "site": "s", "num_patients": 1e999}',
        "[" * 100_000,
        "9" * 5000,
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_is_not_a_message_is_refused(kind: str, text: str) -> None:
    content = over_the_network(KINDS[kind][0])
    content["body"] = ConfigRecord({"json": text})
    refused(kind, content)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_or_strange_body_is_refused(kind: str) -> None:
    refused(kind, RecordDict())
    for record in (ConfigRecord({}), ConfigRecord({"json": b"{}"}), ConfigRecord({"json": [1]})):
        refused(kind, RecordDict({"body": record}))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("description", "site", 3),
        ("description", "num_patients", 0),
        ("description", "num_patients", -1),
        ("description", "num_patients", 2.5),
        ("description", "num_patients", True),
        ("description", "num_patients", "3"),
        ("reply", "site", None),
        ("reply", "status", "done"),
        ("reply", "status", ["trained"]),
        ("reply", "reason", "patient 4711 was odd"),
        ("reply", "num_patients", 0),
        ("reply", "spend", 3),
        ("reply", "spend", []),
        ("reply", "spend", {}),
        ("reply", "spend", {"epsilon": -1.0}),
        ("reply", "spend", {"epsilon": "1"}),
        ("reply", "spend", {"epsilon": True}),
        ("request", "run_id", 3),
        ("request", "round", 0),
        ("request", "round", 1.0),
        ("request", "recipe", None),
        ("request", "recipe", []),
        ("request", "recipe", {}),
    ],
)
def test_a_value_out_of_place_is_refused(kind: str, name: str, value: object) -> None:
    refused(kind, changed(kind, lambda body: body.update({name: value})))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 1.5),
        ("steps", True),
        ("steps", 0),
        ("images_per_patient", "2"),
        ("physical_batch", None),
        ("delta", "x"),
        ("delta", 1),
        ("noise_multiplier", 0),
        ("noise_multiplier", None),
        ("sampling_rate", 1.5),
        ("mechanism", "gauss"),
        ("mechanism", []),
        ("unknown", 1),
    ],
)
def test_a_recipe_out_of_bounds_is_refused(name: str, value: object) -> None:
    refused("request", changed("request", lambda body: body["recipe"].update({name: value})))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_whatever_the_body_holds_only_value_errors_are_raised(
    kind: str, data: st.DataObject
) -> None:
    def change(body: dict[str, Any]) -> None:
        target = body
        if kind == "request" and data.draw(st.booleans()):
            target = body["recipe"]
        name = data.draw(st.sampled_from([*target, "new"]))
        if data.draw(st.booleans()):
            target.pop(name, None)
        else:
            target[name] = data.draw(json_values)

    try:
        KINDS[kind][1](changed(kind, change))
    except ValueError:
        return


def npy(value: Any, **options: Any) -> bytes:
    file = BytesIO()
    np.save(file, value, **options)
    return file.getvalue()


def npz() -> bytes:
    file = BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


def huge_header() -> bytes:
    small = npy(np.ones(2, np.float32))
    return small.replace(b"(2,), }            ", b"(9000000000000,), }")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        npy(np.ones(4, np.float32))[:-1],
        npy(np.ones(4, np.float32)) + b"x",
        npy(np.arange(4)),
        npy(np.ones(2, np.complex64)),
        npy(np.array(["x"])),
        npy(np.array([{}], dtype=object), allow_pickle=True),
        npz(),
        huge_header(),
    ],
    ids=["empty", "cut", "short", "long", "int", "complex", "text", "pickle", "npz", "huge"],
)
@pytest.mark.parametrize("kind", ["request", "reply"])
def test_an_array_that_is_not_one_of_floats_is_refused(kind: str, data: bytes) -> None:
    content = over_the_network(KINDS[kind][0])
    array = Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=data)
    content["weights"] = ArrayRecord({"w": array})
    refused(kind, content)


def test_huge_header_is_what_it_says() -> None:
    assert b"9000000000000" in huge_header()
    assert len(huge_header()) == len(npy(np.ones(2, np.float32)))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=40), st.integers(0, 135), st.text(max_size=4))
def test_whatever_an_array_holds_only_value_errors_are_raised(
    noise: bytes, at: int, stype: str
) -> None:
    data = bytearray(npy(np.ones(2, np.float32)))
    data[at : at + len(noise)] = noise
    for kind in ("numpy.ndarray", stype):
        record = ArrayRecord({"w": Array(dtype="", shape=(2,), stype=kind, data=bytes(data))})
        try:
            wire.from_arrays(record)
        except ValueError:
            continue


def test_a_trained_reply_without_weights_is_refused() -> None:
    content = over_the_network(KINDS["reply"][0])
    del content["weights"]
    refused("reply", content)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_number_without_json_leaves(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        wire.reply_content(
            TrainReply(site="s", status=Status.trained, num_patients=1, spend={"epsilon": value})
        )


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999", "-1e999"])
def test_no_number_without_json_comes_in(value: str) -> None:
    content = over_the_network(KINDS["reply"][0])
    text = str(content.config_records["body"]["json"])
    assert "1.5" in text
    content["body"] = ConfigRecord({"json": text.replace("1.5", value)})
    refused("reply", content)


def test_a_control_variate_travels_beside_the_weights_and_only_where_there_is_one() -> None:
    control = {"w": np.float32([0.5, -1, 2])}
    sent = over_the_network(wire.request_content(replace(REQUEST, control=control)))
    np.testing.assert_array_equal(wire.read_request(sent).control["w"], control["w"])
    assert list(KINDS["request"][0].array_records) == ["weights"]
    assert wire.read_request(over_the_network(wire.request_content(REQUEST))).control == {}

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secure_aggregation.aborted import Aborted
from common.secure_aggregation.frame import pack, unpack


@settings(deadline=None)
@given(body=st.binary(max_size=200), text=st.text(max_size=50))
def test_what_is_packed_comes_back(body: bytes, text: str) -> None:
    assert unpack(pack("kind", {"a": text}, body), "kind") == ({"a": text}, body)


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_bytes_of_anything_else_are_refused(data: bytes) -> None:
    with pytest.raises(Aborted):
        unpack(data, "kind")


@settings(deadline=None)
@given(data=st.data())
def test_a_cut_or_changed_frame_is_read_whole_or_refused(data: st.DataObject) -> None:
    whole = pack("kind", {"a": 1})
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Aborted):
        unpack(whole[:cut], "kind")


@pytest.mark.parametrize(
    "data",
    [
        pack("other", {}),
        pack("kind", {}, b"x" * 100),
        pack("kind", {}).replace(b"{}", b"[]"),
        pack("kind", {}).replace(b"FWSA\x01", b"FWSA\x02"),
        pickle.dumps({"kind": "kind"}),
    ],
)
def test_another_kind_size_version_or_format_is_refused(data: bytes) -> None:
    # a body of 100 bytes passes only where as many are expected
    limit = 1
    if data.endswith(b"x" * 100):
        with pytest.raises(Aborted):
            unpack(data + b"x" * (1 << 21), "kind", max_body=limit)
        return
    with pytest.raises(Aborted):
        unpack(data, "kind", max_body=limit)

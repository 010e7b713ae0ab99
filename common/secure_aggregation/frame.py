"""Bytes of one message: a version, a kind, a small JSON header and a body. Nothing is pickled."""

from __future__ import annotations

import json
import struct
from typing import cast

from common.secure_aggregation.aborted import Aborted

MAX_HEADER = 1 << 20
MAX_BODY = 1 << 31
_MAGIC = b"FWSA"
_VERSION = 1
_START = struct.Struct("<4sBBI")


def pack(kind: str, header: dict[str, object], body: bytes = b"") -> bytes:
    """One message.

    >>> unpack(pack("hello", {"to": "a"}, b"..."), "hello")
    ({'to': 'a'}, b'...')
    """
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    name = kind.encode("ascii")
    return _START.pack(_MAGIC, _VERSION, len(name), len(text)) + name + text + body


def unpack(data: bytes, kind: str, *, max_body: int = 0) -> tuple[dict[str, object], bytes]:
    """Header and body of a message of ``kind``.

    Raises:
        Aborted: if it is of another version or kind, too large, or no such message at all.
    """
    if not _START.size <= len(data) <= _START.size + 255 + MAX_HEADER + (max_body or MAX_BODY):
        raise Aborted(f"a message of {len(data)} bytes is no {kind}")
    magic, version, name_length, text_length = cast(
        "tuple[bytes, int, int, int]", _START.unpack_from(data)
    )
    if magic != _MAGIC or version != _VERSION or text_length > MAX_HEADER:
        raise Aborted(f"not a message of version {_VERSION} of the protocol")
    text_start = _START.size + name_length
    body_start = text_start + text_length
    if data[_START.size : text_start] != kind.encode("ascii"):
        raise Aborted(f"a message of another kind came where {kind} belongs")
    try:
        header: object = json.loads(data[text_start:body_start])
    except (ValueError, RecursionError) as error:
        raise Aborted(f"the header of a {kind} cannot be read") from error
    if not isinstance(header, dict) or len(data) < body_start:
        raise Aborted(f"a {kind} is incomplete")
    return cast("dict[str, object]", header), data[body_start:]

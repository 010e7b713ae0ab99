"""Which patients a ledger speaks of, without naming any.

A patient becomes HMAC-SHA256 of its identifier under a key that never leaves the site: equal in
another run or study of the same hospital, meaningless to anyone without the key. The hashes stay
at the site; only the fingerprint, one hash over all of them, is shown.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable


def patient_hashes(patient_ids: Iterable[str], key: bytes) -> tuple[str, ...]:
    """Sorted keyed hashes of the distinct ``patient_ids`` (hexadecimal). They stay at the site.

    Raises:
        ValueError: There is no patient, an identifier is empty or the key is shorter than 16 bytes.
    """
    if len(key) < 16:
        raise ValueError(f"key of {len(key)} bytes: must have at least 16")
    distinct = set(patient_ids)
    if not distinct:
        raise ValueError("patient_ids is empty: a cohort has at least one patient")
    if "" in distinct:
        raise ValueError("patient_ids holds an empty identifier: every patient needs one")
    return tuple(
        sorted(hmac.new(key, one.encode(), hashlib.sha256).hexdigest() for one in distinct)
    )


def fingerprint_of(hashes: Iterable[str]) -> str:
    """One hash over the sorted patient hashes: the cohort's name, free of order and duplicates."""
    digest = hashlib.sha256(b"fedward cohort v1\n")
    for one in sorted(set(hashes)):
        digest.update(one.encode() + b"\n")
    return digest.hexdigest()


def fingerprint(patient_ids: Iterable[str], key: bytes) -> str:
    """The cohort's name under the site's ``key``; the same for any order and any repetition.

    >>> fingerprint(["b", "a", "b"], bytes(32)) == fingerprint(["a", "b"], bytes(32))
    True
    """
    return fingerprint_of(patient_hashes(patient_ids, key))

"""The enrolment file: what a consortium is told of a hospital's keys. All of it is public."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from common import exchange
from common.errors import UsageError

SCHEMA = "fedward.enrolment/1"
_NAMES = frozenset({"consortium", "hospital", "node_key", "site_key"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolment:
    """The public halves of a hospital's keys (public).

    Attributes:
        consortium: that the hospital joins.
        hospital: its name there.
        node_key: of its SuperNode, in OpenSSH's form without a comment.
        site_key: of its agent, which signs spend statements; 64 hexadecimal digits.
    """

    consortium: str
    hospital: str
    node_key: str
    site_key: str

    @property
    def fingerprint(self) -> str:
        """Of everything in the file, to be read out aloud."""
        return exchange.in_groups(hashlib.sha256(self.dumps().encode()).hexdigest())

    def dumps(self) -> str:
        """As the file has it."""
        return exchange.dump(asdict(self), schema=SCHEMA)


def make(*, consortium: str, hospital: str, node_key: str, site_key: str) -> Enrolment:
    """The enrolment of a hospital.

    Raises:
        UsageError: Something of it is not as it should be.
    """
    exchange.check_name("consortium", consortium)
    exchange.check_name("hospital", hospital)
    if not re.fullmatch(r"[0-9a-f]{64}", site_key):
        raise UsageError("site_key: must be 64 hexadecimal digits")
    if not re.fullmatch(r"ecdsa-sha2-nistp384 [A-Za-z0-9+/=]{1,400}", node_key):
        raise UsageError("node_key: must be an OpenSSH public key of the curve P-384")
    try:
        key = load_ssh_public_key(node_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError("node_key: not a public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise UsageError("node_key: must be of the curve P-384")
    return Enrolment(consortium=consortium, hospital=hospital, node_key=node_key, site_key=site_key)


def read(path: Path) -> Enrolment:
    """The enrolment at ``path``.

    Raises:
        UsageError: It cannot be read or is not whole and sound, in one line.
    """
    fields = exchange.read(path, schema=SCHEMA, names=_NAMES)
    try:
        return make(**fields)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error

"""The join file: what a hospital is told of a consortium. All of it is public."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common import exchange
from common.errors import UsageError

SCHEMA = "fedward.join/1"
_NAMES = frozenset({"consortium", "hospital", "address", "ca_certificate", "ca_sha256"})


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinFile:
    """An invitation (public; it holds no secret).

    Attributes:
        consortium: its name.
        hospital: the name that it gives the hospital.
        address: host and port that the hospital dials.
        ca_certificate: PEM of the only authority whose word counts for that address.
        ca_sha256: of that certificate (DER), to be compared by telephone.
    """

    consortium: str
    hospital: str
    address: str
    ca_certificate: str
    ca_sha256: str

    @property
    def fingerprint(self) -> str:
        """Of the authority, to be read out aloud."""
        return exchange.in_groups(self.ca_sha256)

    def dumps(self) -> str:
        """As the file has it."""
        return exchange.dump(asdict(self), schema=SCHEMA)


def make(*, consortium: str, hospital: str, address: str, ca_certificate: str) -> JoinFile:
    """An invitation of ``hospital``.

    Raises:
        UsageError: Something of it is not as it should be.
    """
    return _checked(
        JoinFile(
            consortium=consortium,
            hospital=hospital,
            address=address,
            ca_certificate=ca_certificate,
            ca_sha256=_sha256(_authority(ca_certificate)),
        )
    )


def read(path: Path) -> JoinFile:
    """The invitation at ``path``.

    Raises:
        UsageError: It cannot be read or is not whole and sound, in one line.
    """
    fields = exchange.read(path, schema=SCHEMA, names=_NAMES)
    try:
        return _checked(JoinFile(**fields))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _checked(join: JoinFile) -> JoinFile:
    exchange.check_name("consortium", join.consortium)
    exchange.check_name("hospital", join.hospital)
    exchange.check_address("address", join.address)
    if _sha256(_authority(join.ca_certificate)) != join.ca_sha256:
        raise UsageError("ca_sha256: not of the certificate in this file")
    return join


def _authority(pem: str) -> x509.Certificate:
    """The one certificate in ``pem``, of an authority."""
    if pem.count("-----BEGIN") != 1:
        raise UsageError("ca_certificate: must be one certificate (PEM)")
    try:
        found = x509.load_pem_x509_certificate(pem.encode())
        constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise UsageError("ca_certificate: not the certificate of an authority") from error
    if not (constraints.critical and constraints.value.ca):
        raise UsageError("ca_certificate: not the certificate of an authority")
    return found


def _sha256(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()

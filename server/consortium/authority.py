"""The consortium's own certificate authority, and the server certificates that it issues."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import UsageError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397  # browsers' bound of old; a date that people meet once a year is not forgotten
_EARLIER = timedelta(minutes=5)  # clocks of hospitals may be behind by what Flower allows
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*")
_LOCAL = ("localhost", "127.0.0.1")  # nginx and the SuperExec dial the SuperLink there


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A private key and its certificate, both PEM."""

    key: bytes = field(repr=False)
    certificate: bytes

    @property
    def parsed(self) -> x509.Certificate:
        """The certificate."""
        return x509.load_pem_x509_certificate(self.certificate)


def found(name: str, *, now: datetime, days: int = AUTHORITY_DAYS) -> Pair:
    """A new authority of the consortium called ``name``."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _called(f"{name} authority", name)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _begun(key.public_key(), subject=subject, issuer=subject, now=now, days=days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return _pair(key, certificate)


def issue(authority: Pair, hosts: Sequence[str], *, now: datetime, days: int = SERVER_DAYS) -> Pair:
    """A server certificate for every one of ``hosts``, and for this machine's loopback.

    Raises:
        UsageError: A host is neither a name nor an address, or the authority ends before.
    """
    signer = load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    above = authority.parsed
    if now + timedelta(days=days) > above.not_valid_after_utc:
        raise UsageError(
            f"days={days}: the authority's own certificate ends on "
            f"{above.not_valid_after_utc:%Y-%m-%d}; found a new one"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    everyone = [*dict.fromkeys([*hosts, *_LOCAL])]
    subject = _called(hosts[0], "fedward server")
    certificate = (
        _begun(key.public_key(), subject=subject, issuer=above.subject, now=now, days=days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_alternative(host) for host in everyone]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA384())
    )
    return _pair(key, certificate)


def sha256(certificate: bytes) -> str:
    """Of a certificate in PEM: the digest of its DER form."""
    parsed = x509.load_pem_x509_certificate(certificate)
    return hashlib.sha256(parsed.public_bytes(Encoding.DER)).hexdigest()


def check_host(host: str) -> str:
    """A host name or address that a certificate can name.

    Raises:
        UsageError: It is neither.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or host.replace(".", "").isdecimal():
        raise UsageError(f"host={host}: neither a host name nor an address")
    return host.lower()


def _alternative(host: str) -> x509.GeneralName:
    checked = check_host(host)
    try:
        return x509.IPAddress(ipaddress.ip_address(checked))
    except ValueError:
        return x509.DNSName(checked)


def _called(common_name: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def _begun(
    public_key: ec.EllipticCurvePublicKey,
    *,
    subject: x509.Name,
    issuer: x509.Name,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _pair(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Pair:
    return Pair(
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate=certificate.public_bytes(Encoding.PEM),
    )

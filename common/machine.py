"""What both doctors look at on a machine: versions, disk, files, certificates, the way out."""

from __future__ import annotations

import operator
import re
import shutil
import ssl
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import requires, version
from pathlib import Path

import httpx
from cryptography import x509

from common.checkup import Finding, fail, ok, warn
from common.unix_user import UnixUser

_SOON_DAYS = 30
_LEAST_GB = 5.0
_WARN_GB = 20.0
_MOST_SKEW_SECONDS = 300.0  # Flower refuses signatures that are older
_WARN_SKEW_SECONDS = 60.0
_SECONDS = 15.0
_ORDER: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def versions(*packages: str) -> list[Finding]:
    """Whether what is installed is what Fedward was made for."""
    findings = [ok("version", f"fedward {version('fedward')}")]
    for name in packages:
        have, wanted = version(name), _wanted(name)
        if _fits(have, wanted):
            findings.append(ok("version", f"{name} {have}"))
        else:
            remedy = f"pip install '{name}{wanted}'"
            findings.append(fail("version", f"{name} {have}, not {wanted}", remedy))
    return findings


def _wanted(package: str) -> str:
    """The bounds that Fedward's own metadata gives for ``package``."""
    for text in requires("fedward") or []:
        found = re.fullmatch(rf"{re.escape(package)}(\[[^]]*\])?([<>=.,0-9]*)", text)
        if found:
            return found[2]
    return ""


def _fits(have: str, wanted: str) -> bool:
    """Whether a version keeps to bounds.

    >>> [_fits(have, "<1.42,>=1.41") for have in ("1.41.0", "1.42.0", "1.5")]
    [True, False, False]
    """
    return all(
        _ORDER[sign](_numbers(have), _numbers(bound))
        for sign, bound in re.findall(r"(>=|<=|==|<|>)([0-9.]+)", wanted)
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", text)[:3])


def disk(folder: Path) -> Finding:
    """Whether there is room where ``folder`` lies."""
    free = shutil.disk_usage(folder).free / 1e9
    text = f"{free:.1f} GB free at {folder}"
    if free < _LEAST_GB:
        return fail("disk", text, f"make room: at least {_LEAST_GB:g} GB")
    if free < _WARN_GB:
        return warn("disk", text, f"make room: better {_WARN_GB:g} GB")
    return ok("disk", text)


def certificate(what: str, pem: bytes, *, now: datetime, remedy: str) -> Finding:
    """Whether the certificate in ``pem`` is valid now, and for how long."""
    check = f"certificate of the {what}"
    try:
        found = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return fail(check, "not a certificate", remedy)
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    days = (end - now).days
    if now < begin:
        return fail(check, f"valid from {begin:%Y-%m-%d %H:%M} UTC on", "set this machine's clock")
    if now > end:
        return fail(check, f"ended on {end:%Y-%m-%d}", remedy)
    if days < _SOON_DAYS:
        return warn(check, f"ends in {days} days, on {end:%Y-%m-%d}", remedy)
    return ok(check, f"until {end:%Y-%m-%d}")


def owned(path: Path, *, mode: int, owner: UnixUser | None = None) -> Finding:
    """Whether ``path`` has at most the rights of ``mode``, and the right owner."""
    check = f"file {path.name}"
    try:
        found = path.lstat()
    except PermissionError:
        return warn(check, "this user may not look at it", "run the doctor as root")
    except OSError as error:
        return fail(check, f"{path}: {error.strerror}", "restore it, or set this folder up anew")
    have = stat.S_IMODE(found.st_mode)
    if have & ~mode:
        return fail(check, f"mode {have:o}, not {mode:o}", f"chmod {mode:o} {path}")
    if owner is not None and found.st_uid != owner.uid:
        return fail(check, f"not of the user {owner.name}", f"chown {owner.uid}:{owner.gid} {path}")
    return ok(check, f"mode {have:o}" + ("" if owner is None else f", user {owner.name}"))


def proxy(environment: Mapping[str, str], address: str) -> Finding:
    """Which way out of the house is used."""
    way = environment.get("HTTPS_PROXY") or environment.get("https_proxy")
    past = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    if not way:
        return ok("proxy", f"none (HTTPS_PROXY is not set); {address} is dialled directly")
    names = {one.strip() for one in past.split(",")}
    if not {"127.0.0.1", "localhost"} <= names:
        return warn(
            "proxy",
            f"HTTPS_PROXY is set, and NO_PROXY is {past or 'not set'}",
            "set NO_PROXY=127.0.0.1,localhost, or what runs on this machine is sought outside",
        )
    return ok("proxy", f"HTTPS_PROXY is set; NO_PROXY={past}")


def reach(address: str, authority: bytes, *, now: datetime, way: str | None) -> list[Finding]:
    """Whether nginx answers at ``address`` as the ``authority`` (PEM) vouches; clocks.

    Args:
        address: host and port.
        authority: the only one whose word counts.
        now: this machine's time.
        way: the proxy to go through.
    """
    try:
        context = ssl.create_default_context(cadata=authority.decode())
    except (ssl.SSLError, ValueError):
        return [fail("server", "ca.crt is not a certificate", "restore it from the join file")]
    try:
        with (
            httpx.Client(
                verify=context, timeout=_SECONDS, trust_env=False, proxy=way or None
            ) as client,
            # before the answer is read: then the connection may be gone
            client.stream("GET", f"https://{address}/") as answer,
        ):
            seen = answer.extensions["network_stream"].get_extra_info("ssl_object")
            der = seen.getpeercert(True)
    except (httpx.HTTPError, OSError, ValueError) as error:
        return [_unreached(address, error)]
    findings = [ok("server", f"{address} answers, and the authority vouches for it")]
    pem = ssl.DER_cert_to_PEM_cert(der).encode()
    findings.append(
        certificate("server", pem, now=now, remedy="at the server: fedward consortium rotate")
    )
    if answer.status_code != 403:
        findings.append(
            fail(
                "server",
                f"HTTP {answer.status_code} outside /v1/fleet/, not 403",
                "put nginx with the consortium's nginx.conf before the SuperLink",
            )
        )
    findings.append(_clock(answer.headers.get("date"), now))
    return findings


def _unreached(address: str, error: Exception) -> Finding:
    text = " ".join(str(error).split()) or type(error).__name__
    if "certificate has expired" in text:
        return fail(
            "server", f"{address}: its certificate has ended", "the server: consortium rotate"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return fail(
            "server",
            f"{address}: not whom the authority vouches for ({text})",
            "a proxy that opens TLS, or another server: ask the network team, then the consortium",
        )
    if isinstance(error, httpx.ProxyError):
        return fail("server", f"the proxy does not let through to {address} ({text})", "ask for it")
    return fail(
        "server",
        f"{address} does not answer ({text})",
        "let this machine dial that port outwards, or set HTTPS_PROXY in proxy.env",
    )


def _clock(date: str | None, now: datetime) -> Finding:
    try:
        there = parsedate_to_datetime(date or "")
    except ValueError:
        return warn("clock", "the server does not say what time it is", "compare by hand")
    if there.tzinfo is None:
        there = there.replace(tzinfo=UTC)
    seconds = abs((there - now).total_seconds())
    text = f"{seconds:.0f} seconds from the server's"
    remedy = "keep time with NTP (timedatectl set-ntp true)"
    if seconds >= _MOST_SKEW_SECONDS:
        return fail("clock", f"{text}; {_MOST_SKEW_SECONDS:.0f} are refused", remedy)
    return (warn("clock", text, remedy)) if seconds >= _WARN_SKEW_SECONDS else ok("clock", text)

"""Approvals: only what was looked at, only by the site's key, and always in the log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.agent.approval import Approvals
from client.agent.audit import AuditLog, Kind, read
from common.errors import LedgerError, UsageError
from common.privacy.keys import SiteKey

KEY = SiteKey(bytes(range(32)))
Fab = Callable[..., bytes]


@pytest.fixture
def audit(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.sqlite", key=KEY)
    yield log
    log.close()


@pytest.fixture
def approvals(tmp_path: Path) -> Approvals:
    return Approvals(folder=tmp_path / "bundles", key=KEY)


def test_an_approval_lasts_until_it_is_taken_back(
    approvals: Approvals, audit: AuditLog, fab: Fab, tmp_path: Path
) -> None:
    one = approvals.look_at(fab("app = 1\n"))
    two = approvals.look_at(fab("app = 2\n", version="1.1.0"))
    assert not approvals.allow(one.sha256)
    assert approvals.last() is None
    approvals.approve(one.sha256, audit)
    approvals.approve(two.sha256, audit)
    again = Approvals(folder=approvals.folder, key=KEY)
    assert again.allow(one.sha256)
    assert again.last() == two
    approvals.revoke(two.sha256, audit)
    assert not again.allow(two.sha256)
    assert again.last() == one
    kinds = [r.kind for r in read(tmp_path / "audit.sqlite", public_key=KEY.public_key).records]
    assert kinds == [Kind.opened, Kind.approved, Kind.approved, Kind.revoked]


def test_only_a_bundle_that_was_looked_at_can_be_approved(
    approvals: Approvals, audit: AuditLog, fab: Fab
) -> None:
    with pytest.raises(UsageError, match="run inspect first"):
        approvals.approve("ab" * 32, audit)
    found = approvals.look_at(fab("app = 1\n"))
    (approvals.folder / f"{found.sha256}.fab").write_bytes(fab("app = 2\n"))
    with pytest.raises(UsageError, match="has changed"):
        approvals.approve(found.sha256, audit)
    for name in ("", "../x", found.sha256[:12], found.sha256.upper()):
        with pytest.raises(UsageError, match="64 hexadecimal digits"):
            approvals.approve(name, audit)
    with pytest.raises(UsageError, match="is not approved"):
        approvals.revoke(found.sha256, audit)


def test_approvals_that_the_site_did_not_sign_allow_nothing(
    approvals: Approvals, audit: AuditLog, fab: Fab
) -> None:
    found = approvals.look_at(fab("app = 1\n"))
    approvals.approve(found.sha256, audit)
    path = approvals.folder / "approvals.json"
    fields = json.loads(path.read_text())
    fields["approved"][0]["sha256"] = "ab" * 32
    path.write_text(json.dumps(fields))
    with pytest.raises(LedgerError, match="not signed by this site's key"):
        approvals.allow("ab" * 32)
    path.write_text("{")
    with pytest.raises(LedgerError, match="damaged"):
        approvals.allow(found.sha256)


def test_an_approval_that_cannot_be_logged_does_not_count(
    approvals: Approvals, audit: AuditLog, fab: Fab
) -> None:
    found = approvals.look_at(fab("app = 1\n"))
    audit.close()
    with pytest.raises(LedgerError):
        approvals.approve(found.sha256, audit)
    assert not approvals.allow(found.sha256)

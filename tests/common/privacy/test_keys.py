from __future__ import annotations

import stat
from pathlib import Path

import pytest

from common.errors import LedgerError
from common.privacy import keys
from common.privacy.keys import SiteKey


def test_a_new_key_is_its_owners_only_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    key = SiteKey.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SiteKey.load_or_create(path) == key
    assert SiteKey.load(path) == key
    assert [one.name for one in tmp_path.iterdir()] == ["site.key"]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    SiteKey.load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(LedgerError, match="mode"):
        SiteKey.load(path)


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_damaged_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(LedgerError, match="bytes"):
        SiteKey.load_or_create(path)


def test_a_missing_key_is_not_made_by_loading(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be read"):
        SiteKey.load(tmp_path / "site.key")


def test_signatures_fit_one_key_and_one_message() -> None:
    key, other = SiteKey.generate(), SiteKey.generate()
    signature = key.sign(b"message")
    assert keys.verify(key.public_key, b"message", signature)
    assert not keys.verify(key.public_key, b"massage", signature)
    assert not keys.verify(other.public_key, b"message", signature)
    assert not keys.verify("no hexadecimal", b"message", signature)
    assert not keys.verify(key.public_key, b"message", "")


def test_the_secret_does_not_show() -> None:
    key = SiteKey.generate()
    assert repr(key) == "SiteKey()"
    assert key.cohort_key not in (key.seed, bytes.fromhex(key.public_key))

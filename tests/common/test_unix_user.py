"""Users of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common import templates, unix_user
from common.errors import UsageError


def test_a_user_by_name_and_by_number_is_the_same() -> None:
    root, zero = unix_user.find("root"), unix_user.find("0")
    assert (root.uid, root.gid) == (zero.uid, zero.gid) == (0, 0)
    assert unix_user.myself().uid == os.getuid()


def test_a_number_without_a_name_is_a_user_and_a_name_without_a_number_is_none() -> None:
    assert (unix_user.find("61999").uid, unix_user.find("61999").gid) == (61999, 61999)
    for given in ("nobody-of-this-name", "", "-1", "9" * 30, "61999x"):
        with pytest.raises(UsageError, match="no such user"):
            unix_user.find(given)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_a_folder_is_given_away_with_everything_in_it(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.parent.mkdir()
    inside.touch()
    (tmp_path / "a" / "out").symlink_to("/etc/hostname")
    before = Path("/etc/hostname").stat().st_uid
    unix_user.find("61999").own_all(tmp_path / "a")
    assert {p.lstat().st_uid for p in (inside, inside.parent, tmp_path / "a" / "out")} == {61999}
    assert Path("/etc/hostname").stat().st_uid == before


@pytest.mark.parametrize("path", ["/a b", "/a;b", "/a'b", "/a$b", "/a\nb", "/a%b"])
def test_a_path_that_would_need_quotes_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        templates.plain_path("home", Path(path))

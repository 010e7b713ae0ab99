"""Whatever is wrong with the file, there is no policy, and every change is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client.agent import policy_file
from client.agent.policy import Policy
from client.agent.policy_file import PolicyFile, Reading


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.write_text(text)
    path.chmod(mode)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_text("paused: ["), "line 1"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not text"),
        (lambda path: path.write_text(""), "not a list of settings"),
        (lambda path: path.chmod(0o664), "other users may write it"),
        (lambda path: path.chmod(0o646), "other users may write it"),
    ],
)
def test_a_file_that_cannot_be_used_is_no_policy(
    tmp_path: Path, policy_text: str, spoil: Callable[[Path], None], complaint: str
) -> None:
    path = tmp_path / "policy.yaml"
    write(path, policy_text)
    assert policy_file.read(path).policy is not None
    spoil(path)
    found = policy_file.read(path)
    assert found.policy is None
    assert complaint in found.problem
    assert "\n" not in found.problem


def test_each_change_is_told_once_and_before_it_counts(tmp_path: Path, policy_text: str) -> None:
    path = tmp_path / "policy.yaml"
    write(path, policy_text)
    told: list[tuple[Reading, Policy | None]] = []
    follower = PolicyFile(path, lambda reading, before: told.append((reading, before)))
    first = follower.current()
    assert follower.current() == first
    write(path, "broken: [")
    assert follower.current().policy is None
    write(path, policy_text)
    assert follower.current() == first
    assert [reading.policy is None for reading, _ in told] == [False, True, False]
    assert [before is None for _, before in told] == [True, False, True]


def test_a_change_that_cannot_be_told_does_not_count(tmp_path: Path, policy_text: str) -> None:
    path = tmp_path / "policy.yaml"
    write(path, policy_text)

    def fail(reading: Reading, before: Policy | None) -> None:
        raise OSError("disk full")

    follower = PolicyFile(path, fail)
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            follower.current()

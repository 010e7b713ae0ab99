"""``site.yaml``: what it may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.agent import site_file
from common.config import DeviceName, Job
from common.errors import UsageError

TEXT = """\
schema: fedward.site/1
name: hospital-a
socket: agent.sock
policy: /etc/fedward/policy.yaml
state: state
settings: [model.architecture=test_vit, seed=3]
"""


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(TEXT)
    found = site_file.read(path)
    assert (found.name, found.job, found.threads) == ("hospital-a", Job.classify, 1)
    assert found.device is DeviceName.auto
    assert found.socket == tmp_path / "agent.sock"
    assert found.policy == Path("/etc/fedward/policy.yaml")
    assert found.ledgers == tmp_path / "state" / "ledgers"
    config = found.config()
    assert (config.model.architecture, config.seed) == ("test_vit", 3)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("fedward.site/1", "fedward.site/9", "must be fedward.site/1"),
        ("name: hospital-a", "name: ../a", "letters, digits, dots, dashes"),
        ("socket: agent.sock\n", "", "socket: missing"),
        ("state: state", "state: state\npolicies: x", "policies: unknown"),
        ("state: state", "state: state\njob: guess", "must be classify or synthesize"),
        ("state: state", "state: state\nthreads: 0", "at least 1"),
        ("state: state", "state: state\ndevice: gpu", "must be auto, cpu, cuda"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(UsageError, match=complaint) as caught:
        site_file.read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="No such file"):
        site_file.read(tmp_path / "none.yaml")


def test_settings_that_the_federation_does_not_know_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(TEXT.replace("seed=3", "sed=3"))
    with pytest.raises(UsageError, match="sed"):
        site_file.read(path).config()

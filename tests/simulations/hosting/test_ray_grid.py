from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from flwr.app import Context, Message, RecordDict
from ray.exceptions import ActorUnavailableError

from common import wire
from common.config import SimulationConfig
from common.errors import RunFailed
from common.messages import SiteDescription, TrainReply, TrainRequest
from simulations import sites as sites_module
from simulations.hosting.child import QUIET
from simulations.hosting.host import Host
from simulations.hosting.hosts import open_hosts
from simulations.hosting.ray_grid import RayGrid
from simulations.run_dir import RunDir

pytestmark = [
    # Ray leaves the files of its processes open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# What a question of the sort that only a hospital's own process can answer holds here.
DIE, HANG = b"die", b"hang"


class Hospital:
    """Says in which process it lives."""

    def __init__(self, number: int) -> None:
        self._number = number

    def describe(self) -> SiteDescription:
        return SiteDescription(site=f"{self._number} in {os.getpid()}", num_patients=1)

    def train(self, request: TrainRequest) -> TrainReply:
        raise NotImplementedError

    def answer(self, data: bytes, request: TrainRequest | None = None) -> bytes:
        if data == DIE:
            os._exit(1)
        if data == HANG:
            time.sleep(600)
        return f"{self._number} in {os.getpid()}".encode()


@dataclass(frozen=True)
class Hospitals:
    """Stands where `SimulatedSites` would."""

    names: tuple[str, ...]
    run_dir: RunDir

    def __call__(self, context: Context) -> Hospital:
        return Hospital(int(context.node_config["partition-id"]))


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Any]]:
    os.environ.update(QUIET)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield open_hosts(SimulationConfig(), num_sites=5)
    ray.shutdown()


@pytest.fixture
def grid(hosts: list[Any], tmp_path: Path) -> RayGrid:
    names = tuple(f"hospital-{number}" for number in range(5))
    sites: Any = Hospitals(names=names, run_dir=RunDir(path=tmp_path))
    return RayGrid(hosts, sites)


def replies(grid: RayGrid, messages: list[Message]) -> list[Message]:
    """In the order of the questions."""
    numbers = list(grid.push_messages(messages))
    found: dict[str, Message] = {}
    for _ in range(3000):
        for reply in grid.pull_messages(numbers):
            found[reply.metadata.reply_to_message_id] = reply
        if len(found) == len(messages):
            return [found[number] for number in numbers]
        time.sleep(0.1)
    pytest.fail(f"{len(found)} of {len(messages)} messages were answered")


def describe(*nodes: int) -> list[Message]:
    content = wire.describe_content()
    return [wire.message(content, node=node, kind=wire.DESCRIBE) for node in nodes]


def ready(host: Any) -> bool:
    """Once it has been started again."""
    for _ in range(100):
        try:
            return ray.get(host.ready.remote(), timeout=300)
        except ActorUnavailableError:
            time.sleep(1)
    return False


def secure(node: int, data: bytes) -> Message:
    return wire.message(wire.secure_content(data), node=node, kind=wire.SECURE)


def said(reply: Message) -> tuple[int, int]:
    """Number of the hospital, and of its process."""
    number, process = wire.read_description(reply.content).site.split(" in ")
    return int(number), int(process)


def test_every_hospital_answers_for_itself_and_as_many_at_once_as_there_are_cpus(
    hosts: list[Any], grid: RayGrid
) -> None:
    assert len(hosts) == 2
    found = [said(reply) for reply in replies(grid, describe(1, 2, 3, 4, 5))]
    assert [number for number, _ in found] == [0, 1, 2, 3, 4]
    assert len({process for _, process in found}) == 2
    assert list(grid.get_node_ids()) == [1, 2, 3, 4, 5]


def test_a_hospital_stays_in_its_process(grid: RayGrid) -> None:
    first = [said(reply) for reply in replies(grid, describe(1, 2))]
    for _ in range(3):
        assert [said(reply) for reply in replies(grid, describe(1, 2))] == first
        assert [said(reply) for reply in replies(grid, describe(2))] == first[1:]


def test_what_only_its_own_process_knows_waits_for_it(grid: RayGrid) -> None:
    """While the other one is free."""
    (first, other) = [said(reply)[1] for reply in replies(grid, describe(1, 2))]
    (third,) = [said(reply)[1] for reply in replies(grid, describe(3))]
    neighbour = {first: 1, other: 2}[third]
    slow = [secure(neighbour, b"a"), *(secure(3, b"b") for _ in range(3))]
    answers = [wire.read_secure(reply.content)[0] for reply in replies(grid, slow)]
    assert [int(answer.split()[-1]) for answer in answers] == [third] * 4


def test_a_process_that_dies_is_an_error_and_comes_back(grid: RayGrid) -> None:
    before = [said(reply)[1] for reply in replies(grid, describe(1, 2))]
    dead, alive = replies(grid, [secure(1, DIE), secure(2, b"well")])
    assert dead.has_error()
    assert not alive.has_error()
    for _ in range(100):
        found = replies(grid, describe(1, 2))
        if not any(reply.has_error() for reply in found):
            break
    after = [said(reply)[1] for reply in found]
    assert after[1] == before[1]
    assert after[0] != before[0]


def test_a_hospital_that_hangs_is_ended_with_the_run(grid: RayGrid, hosts: list[Any]) -> None:
    replies(grid, describe(1, 2))
    list(grid.push_messages([secure(1, HANG)]))
    assert list(grid.pull_messages(["message-3"])) == []
    grid.close()
    assert [ready(host) for host in hosts] == [True, True]


def test_more_than_any_node_has_is_refused(hosts: list[Any]) -> None:
    del hosts
    with pytest.raises(RunFailed, match="no node of Ray has that much"):
        open_hosts(SimulationConfig(cpus_per_site=64.0), num_sites=5)


def test_memory_decides_how_many_train_side_by_side(hosts: list[Any]) -> None:
    (node,) = ray.nodes()
    memory = int(node["Resources"]["memory"])
    for share, count in ((0.1, len(hosts)), (0.6, 1)):
        some = open_hosts(SimulationConfig(), num_sites=5, memory_bytes=int(share * memory))
        assert len(some) == count
        for host in some:
            ray.kill(host)
    with pytest.raises(RunFailed, match=r"GB of memory: no node .* set training\.memory_gb"):
        open_hosts(SimulationConfig(), num_sites=5, memory_bytes=2 * memory)


def test_a_process_that_cannot_be_had_again_is_no_reason_to_wait(
    hosts: list[Any], tmp_path: Path
) -> None:
    """The questions that wait for it are answered with errors, as those that it had."""
    del hosts
    names = tuple(f"hospital-{number}" for number in range(3))
    sites: Any = Hospitals(names=names, run_dir=RunDir(path=tmp_path))
    alone: Any = ray.remote(Host).options(num_cpus=0, max_restarts=0).remote()
    found = replies(RayGrid([alone], sites), [secure(1, DIE), *describe(2, 3)])
    assert [reply.has_error() for reply in found] == [True, True, True]


def test_content_of_a_round_is_stored_once(grid: RayGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[RecordDict] = []
    put = ray.put

    def count(value: Any) -> Any:
        stored.append(value)
        return put(value)

    monkeypatch.setattr(ray, "put", count)
    replies(grid, describe(1, 2, 3, 4, 5))
    assert len(stored) == 1


def test_another_run_in_the_same_folder_takes_nothing_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill: a warm process must not go on with the old run's patients and budget."""
    run_dir = RunDir(path=tmp_path)
    monkeypatch.setattr(sites_module, "_open_sites", {})
    sites: Any = Hospitals(names=("hospital-0",), run_dir=run_dir)
    host = Host()
    about = (wire.DESCRIBE, 1, "message-1")
    for attempt, kept in (("first", False), ("first", True), ("second", False)):
        host.answer(attempt, sites, wire.describe_content(), about)
        key = (str(tmp_path), "hospital-0")
        assert (key in sites_module._open_sites) is kept
        sites_module._open_sites[key] = Any

"""What ``fedward bench memory`` looks at, and the study that it makes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import configs
from simulations.bench import memory
from simulations.bench.memory import Part, Watch
from simulations.cli import app
from simulations.partition import partition
from simulations.sites import dealt

HOLD = """
import sys, time
kept = bytearray(int(sys.argv[1]))
for place in range(0, len(kept), 4096):
    kept[place] = 1
print("ready", flush=True)
time.sleep(600)
"""


def test_memory_of_descendants_is_seen_and_forgotten_with_them() -> None:
    sizes = (50_000_000, 150_000_000)
    held = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(size), *more], stdout=subprocess.PIPE, text=True
        )
        for size, more in zip(sizes, ([], ["simulations.runner"]), strict=True)
    ]
    try:
        for process in held:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        watch = Watch()
        watch.begin()
        deadline = time.monotonic() + 60
        while not watch.total and time.monotonic() < deadline:
            time.sleep(0.05)
        watch.end()
        assert 50e6 < watch.peaks[Part.ray] < 120e6
        assert 150e6 < watch.peaks[Part.server] < 220e6
        assert sum(sizes) < watch.total < sum(sizes) + 200e6
        assert watch.peaks[Part.hospitals] == 0
    finally:
        for process in held:
            process.kill()
            process.communicate()
    later = Watch()
    later.look()
    assert later.total < sum(sizes)


def test_the_study_has_so_many_hospitals_with_both_classes(tmp_path: Path) -> None:
    root = memory._study(tmp_path, 3)
    assert memory._study(tmp_path, 3) == root
    config = configs.load(
        ["data=table", f"data.root={root}", *memory._COLUMNS, "federation.num_sites=3"]
    )
    _, split, shares = dealt(config, tmp_path / "phantoms", os.urandom(32))
    assert sorted(shares) == ["site-0", "site-1", "site-2"]
    assert partition(split.train, config.partition, num_sites=3, seed=1).keys() == shares.keys()
    for records in (*shares.values(), split.val, split.test):
        assert {record.labels for record in records} == {(0,), (1,)}


def test_a_file_that_cannot_be_is_said_before_anything_runs(tmp_path: Path) -> None:
    target = tmp_path / "none" / "figures.json"
    done = CliRunner().invoke(app, ["bench", "memory", "--json", str(target)])
    assert "no such folder" in str(done.exception)


@pytest.mark.long
def test_one_run_is_measured(tmp_path: Path) -> None:
    peak = memory.measure(tmp_path, 3, 2, asked=2)
    assert (peak.num_sites, peak.sites_per_round, peak.rounds) == (3, 2, 2)
    assert 100 < peak.hospital_process_mb < peak.all_mb < 20_000
    assert 100 < peak.server_mb < peak.all_mb

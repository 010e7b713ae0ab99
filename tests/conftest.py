"""The order of tests, and a browser for those that look at pages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands first: they take longest, and in the end nothing should wait for them."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What headless Chromium met on a page."""

    dom: str
    console: list[str]
    requests: list[str]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's browser; its absence skips a test here and fails it in CI."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not on PATH, and CI must open the report")
        pytest.skip("chromium is not on PATH (Debian package chromium)")
    return path


def _visit(chromium: str, page: Path, folder: Path) -> Visit:
    """Open ``page`` with a fresh profile; requests that Chromium makes for itself do not count."""
    log = folder / "net.json"
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--enable-logging=stderr --v=0 --dump-dom"
    )
    with tempfile.TemporaryDirectory(dir=folder) as profile:
        done = subprocess.run(
            [
                *(chromium, *flags.split(), f"--user-data-dir={profile}"),
                *(f"--log-net-log={log}", page.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    parameters = [event.get("params") or {} for event in events]
    return Visit(
        dom=done.stdout,
        console=[line for line in done.stderr.splitlines() if ":CONSOLE:" in line],
        requests=[
            entry["url"]
            for entry in parameters
            if "url" in entry and entry.get("initiator", "not an origin") != "not an origin"
        ],
    )


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Callable[[Path], Visit]:
    """Opens a page and tells what happened."""
    return lambda page: _visit(chromium, page, tmp_path)

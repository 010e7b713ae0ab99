"""A simulation in this process: Flower's apps and the real sites, without Ray between them."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from flwr.supercore.task_identity import TaskIdentity

import configs
from common.config import Job
from server.rounds import Outcome
from simulations.classification import classify
from simulations.hosting.in_process import federate as in_process_federate
from simulations.run_dir import RunDir
from simulations.scene import Scene
from simulations.simulate import of_synthesis
from simulations.sites import prepare
from simulations.synthesis import synthesize

Simulate = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Runs a job in a folder with overrides; returns its events, the result in the last one."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def simulate(
        path: Path,
        *overrides: str,
        job: Job = Job.classify,
        federate: Callable[..., list[Outcome]] = in_process_federate,
        observe: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> list[dict[str, Any]]:
        primary = "synthesize" if job is Job.synthesize else "config"
        config = configs.load([*overrides, f"run_dir={path}"], primary=primary)
        run_dir = RunDir(path=path)
        run_dir.work.mkdir(parents=True)
        if not run_dir.run_id.exists():
            run_dir.run_id.write_text(path.name)
        events: list[dict[str, Any]] = []

        def both(event: dict[str, Any]) -> None:
            events.append(event)
            observe(event)

        scene = Scene(
            config=of_synthesis(config) if job is Job.synthesize else config,
            run_dir=run_dir,
            hospitals=prepare(config, run_dir),
            observe=both,
            federate=federate,
        )
        (synthesize if job is Job.synthesize else classify)(scene)
        return events

    return simulate


_RUN_AXE = """
for (const one of document.querySelectorAll("details")) { one.open = true; }
axe.run(document, {resultTypes: ["violations"]}).then((found) => {
  const place = document.createElement("pre");
  place.id = "axe-found";
  place.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(
    found.violations.map((one) => ({
      id: one.id, impact: one.impact, where: one.nodes.map((node) => node.html.slice(0, 200)),
    }))
  ))));
  document.body.append(place);
});
"""


@pytest.fixture
def axe(chromium: str, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Serious and critical findings of axe-core on a copy of a page, all details open."""

    def run(page: Path, *, dark: bool) -> list[dict[str, Any]]:
        program = Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
        text = page.read_text(encoding="utf-8")
        bare, num_policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert num_policies == 1  # the page itself allows no script
        scripts = f"<script>{program}</script><script>{_RUN_AXE}</script></body>"
        copy = tmp_path / "axe.html"
        copy.write_text(bare.replace("</body>", scripts), encoding="utf-8")
        flags = (
            "--headless --no-sandbox --disable-gpu --no-first-run --dump-dom --window-size=1200,900"
        )
        scheme = "--blink-settings=preferredColorScheme=" + ("0" if dark else "1")
        with tempfile.TemporaryDirectory(dir=tmp_path) as profile:
            done = subprocess.run(
                [
                    *(chromium, *flags.split(), scheme, f"--user-data-dir={profile}"),
                    *("--virtual-time-budget=60000", copy.as_uri()),
                ],
                capture_output=True,
                text=True,
                timeout=300,
                check=True,
            )
        told = re.search(r'<pre id="axe-found">([^<]*)</pre>', done.stdout)
        assert told is not None, "axe did not finish"
        found: list[dict[str, Any]] = json.loads(base64.b64decode(told[1]))
        return [one for one in found if one["impact"] in {"serious", "critical"}]

    return run

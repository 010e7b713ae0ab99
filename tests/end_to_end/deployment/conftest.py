"""A consortium and its hospitals, run from the units that ``init`` writes, each by its own user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.loopback.consortium import Agreed, Consortium, Site
from simulations.loopback.processes import Processes, Python

AGREED = Agreed(
    settings=(
        "model.architecture=test_vit",
        "finetune=head",
        "data.image_size=32",
        "data.phantom.size=32",
        "data.phantom.num_train_per_site=12",
        "data.phantom.num_val=8",
        "data.phantom.num_test=8",
        "federation.num_sites=2",
    ),
    run=(
        "federation.rounds=3",
        "federation.steps_per_round=2",
        "federation.wait_seconds=120",
        "federation.timeout_seconds=120",
        "privacy.sampling_rate=0.5",
        "privacy.noise_multiplier=2.0",
        "privacy.delta=1e-3",
        "privacy.accountant=rdp",
        "privacy.images_per_patient=1",
    ),
    policy="""\
schema: fedward.policy/1
studies:
  phantom: {epsilon: 8.0, delta: 1e-3, accountant: rdp}
smallest_noise_multiplier: 1.0
smallest_expected_batch: 3
largest_sampling_rate: 0.5
largest_steps: 4
models: [test_vit]
""",
)
SEPARATE = os.getuid() == 0  # root alone can start processes of others
SECONDS = 900.0  # of a machine that does other things too; nothing is measured
_LEFT_OUT = ("test", "tests", "site-packages", "config-*", "idlelib", "tkinter", "lib2to3", "*.a")
_PROBE = "import client.agent.gate_file"


def may_be_run_by_others(python: Python) -> bool:
    try:
        done = subprocess.run(
            [python.bin / "python", "-c", _PROBE],
            cwd="/",
            env={**os.environ, **python.environment},
            user=Consortium.SERVER_USER,
            group=Consortium.SERVER_USER,
            extra_groups=[],
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0


def readable(folder: Path) -> Python:
    """This Python, or a copy of it in ``folder`` with the same packages."""
    mine = Python()
    if not SEPARATE or may_be_run_by_others(mine):
        return mine
    twin = _copied(folder)
    assert may_be_run_by_others(twin)
    return twin


def _copied(folder: Path) -> Python:
    base, library = folder / "base", Path("lib") / f"python{sysconfig.get_python_version()}"
    (base / "bin").mkdir(parents=True)
    (base / "lib").mkdir()
    shutil.copytree(
        Path(sys.base_prefix) / library,
        base / library,
        symlinks=True,
        ignore=shutil.ignore_patterns(*_LEFT_OUT),
    )
    for shared in (Path(sys.base_prefix) / "lib").glob("libpython*.so*"):
        shutil.copy2(shared, base / "lib" / shared.name)
    shutil.copy2(Path(sys.executable).resolve(), base / "bin" / "python3")
    own = folder / "venv"
    (own / "bin").mkdir(parents=True)
    (own / "lib").symlink_to(Path(sys.prefix) / "lib")
    (own / "pyvenv.cfg").write_text(f"home = {base / 'bin'}\nversion = {sys.version.split()[0]}\n")
    for name in ("python", "python3"):
        (own / "bin" / name).symlink_to(base / "bin" / "python3")
    for script in Path(sys.executable).parent.glob("f[el]*w*"):
        first, _, rest = script.read_text().partition("\n")
        if "python" in first and script.name.startswith(("fedward", "flower", "flwr")):
            copy = own / "bin" / script.name
            copy.write_text(f"#!{own / 'bin' / 'python'}\n{rest}")
            copy.chmod(0o755)
    for path in (folder, base, own):
        path.chmod(0o755)
    return Python(bin=own / "bin", environment={"LD_LIBRARY_PATH": str(base / "lib")})


class Town(Consortium):
    """A consortium to which things are done that no administrator does."""

    def flwr(self, *words: str) -> str:
        """Flower's own command, as the administrator."""
        python = self.processes.python
        done = subprocess.run(
            [python.bin / "flwr", *words],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.root / "work",
            env={
                "PATH": f"{python.bin}:/usr/bin:/bin",
                "FLWR_HOME": str(self.folder / "flower"),
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                **python.environment,
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def build(self, app: Path) -> Path:
        """The bundle of an app, as Flower builds it."""
        self.flwr("build", "--app", str(app))
        [bundle] = (self.root / "work").glob("*.fab")
        return bundle.rename(app / "app.fab")

    def start_supernode_again(self, site: Site) -> None:
        """As ``Restart=always`` does: for a while the SuperLink holds it to be there still."""
        name, deadline = f"{site.name}-supernode", time.monotonic() + SECONDS
        log = self.processes.log(name)
        before = log.read_text().count("SuperNode ID")
        site.start("supernode")
        while log.read_text().count("SuperNode ID") == before:
            assert time.monotonic() < deadline, self.processes.said(name)
            if self.processes.running[name].poll() is not None:
                time.sleep(5)
                site.start("supernode")
            time.sleep(0.2)


@pytest.fixture(scope="session")
def python() -> Iterator[Python]:
    """One that all users may run."""
    with tempfile.TemporaryDirectory(prefix="fw-py-") as folder:
        yield readable(Path(folder))


@pytest.fixture(scope="module")
def consortium(python: Python) -> Iterator[Consortium]:
    """A server that runs, of a module's own, without hospitals."""
    # a short path: a Unix socket's has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="fw-") as folder:
        root = Path(folder)
        processes = Processes(logs=root / "logs", python=python, separate=SEPARATE, seconds=SECONDS)
        made = Town.found(root, AGREED, processes)
        try:
            made.start()
            yield made
        finally:
            made.processes.stop()

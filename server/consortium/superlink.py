"""The administrator's side of Flower's SuperLink, by its own command `flwr`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from server.consortium.folder import CONNECTION, Folder

_SECONDS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Superlink:
    """The SuperLink of the consortium in ``folder``, which has to run on this machine."""

    folder: Folder

    def register(self, public_key: str, name: str) -> str:
        """Lets the holder of the key (OpenSSH) connect; gives the node's number.

        Raises:
            UsageError: The SuperLink is not there, or refuses.
        """
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "node.pub"
            path.write_text(public_key + "\n")
            said = self._ask("supernode", "register", str(path), CONNECTION, "--name", name)
        return str(said["node-id"])

    def unregister(self, node_id: str) -> None:
        """Lets the node connect no more.

        Raises:
            UsageError: The SuperLink is not there, or refuses.
        """
        self._ask("supernode", "unregister", node_id, CONNECTION)

    def nodes(self) -> list[dict[str, Any]]:
        """Registered nodes as `flwr supernode list` tells them.

        Raises:
            UsageError: The SuperLink is not there, or refuses.
        """
        return list(self._ask("supernode", "list", CONNECTION).get("nodes", []))

    def run(self, app: Path, name: str) -> str:
        """Starts a run of the app for the prepared run of this name; gives Flower's number.

        Raises:
            UsageError: The SuperLink is not there, or refuses.
        """
        config = f'run="{name}"'
        said = self._ask("run", str(app), CONNECTION, "--run-config", config)
        return str(said["run-id"])

    def _ask(self, *words: str) -> dict[str, Any]:
        command = [str(Path(sys.executable).with_name("flwr")), *words, "--format", "json"]
        with tempfile.TemporaryDirectory() as work:  # a folder of the connection's name misleads it
            try:
                done = subprocess.run(
                    command,
                    cwd=work,
                    env=self.folder.environment(os.environ),
                    capture_output=True,
                    text=True,
                    timeout=_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise UsageError(f"flwr {words[0]}: {type(error).__name__}") from error
        said = _json_in(done.stdout)
        if done.returncode != 0 or said is None or said.get("success") is False:
            why = " ".join((said or {}).get("error-message", "").split())
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise UsageError(
                f"flwr {' '.join(words[:2])}: {why or ' '.join(last) or 'no answer'} "
                "(does the SuperLink run on this machine?)"
            )
        return said


def _json_in(text: str) -> dict[str, Any] | None:
    """The JSON object in what the command printed, which may say other things before."""
    begin = text.find("{")
    if begin < 0:
        return None
    try:
        found: Any = json.loads(text[begin : text.rfind("}") + 1])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

"""What stands in the pages of a run beside its result: its audit, pictures of an update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from simulations.audit.inversion_page import InversionPage, read_inversion
from simulations.audit.panel import Panel, read_panel
from simulations.report import model_card, run_page
from simulations.run_dir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Of claimed privacy, as it lies in the folder of a run.

    Attributes:
        audit: membership attacks beside the claims (private where the study is).
        inversion: what one update shows of an image (public).
    """

    audit: Panel | None = None
    inversion: InversionPage | None = None

    @classmethod
    def of(cls, folder: Path, result: Mapping[str, Any]) -> Evidence:
        """What lies in ``folder`` beside ``result``, the content of its ``result.json``.

        Raises:
            UsageError: something there cannot be read, or is about another model.
        """
        audit = read_panel(folder)
        final = result.get("final") or {}
        if audit is not None and audit.weights_sha256 != final.get("weights_sha256"):
            raise UsageError(
                f"{folder / 'audit.json'}: of another model than result.json; use fedward audit run"
            )
        return cls(audit=audit, inversion=read_inversion(folder))

    @property
    def refuted(self) -> bool:
        """Whether a claim was found to be wrong."""
        return self.audit is not None and self.audit.passes

    @property
    def mode(self) -> int:
        """Of a page that shows it: an audit of a study that is not public is its owner's alone."""
        return 0o644 if self.audit is None or self.audit.public else 0o600


def write_pages(run_dir: RunDir, result: Mapping[str, Any]) -> None:
    """Write the pages of a run anew, with all evidence that lies in its folder.

    Raises:
        UsageError: as `Evidence.of` and `run_page.render`.
        OSError: the folder cannot be written.
    """
    evidence = Evidence.of(run_dir.path, result)
    run_page.write(result, run_dir.report, evidence)
    if run_dir.weights.is_file() and result.get("final"):
        model_card.write(result, run_dir.model_card, refuted=evidence.refuted)

"""Where the weights come from that a run begins with: read once, known to every hospital."""

from __future__ import annotations

import json

from client.synthesis.source import Source, weights_source
from common import provenance
from common.config import Config
from common.files import write_atomically
from simulations.run_dir import RunDir


def prepare_initial(config: Config, run_dir: RunDir) -> tuple[Source, ...]:
    """Read the provenance of ``model.weights`` and ``model.start``, if the run has them.

    Weights without one are public for the reason that ``model.weights_public`` gives; weights that
    some run trained have to bring theirs.

    Raises:
        UsageError: if a file cannot be read, or its provenance is missing or broken.
    """
    model = config.model
    found = [
        weights_source(path, public=public)
        for path, public in ((model.weights, True), (model.start, False))
        if path is not None
    ]
    sources = tuple(source for source in found if source is not None)
    rows = [
        {
            "what": source.what,
            "request_id": source.request_id,
            "provenance": source.provenance.to_dict(),
        }
        for source in sources
    ]
    write_atomically(run_dir.initial, json.dumps(rows, allow_nan=False))
    return sources


def open_initial(run_dir: RunDir) -> tuple[Source, ...]:
    """What `prepare_initial` kept."""
    rows = json.loads(run_dir.initial.read_text())
    return tuple(
        Source(
            what=row["what"],
            request_id=row["request_id"],
            provenance=provenance.loads(json.dumps(row["provenance"]), where=run_dir.initial),
        )
        for row in rows
    )

"""Something that was made from patients somewhere, and that a site is to train with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from common import provenance as origin
from common.errors import UsageError
from common.provenance import Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Synthetic images, or initial weights (public).

    Attributes:
        what: it is called in a ledger.
        provenance: how it was made.
        request_id: under which a ledger holds that it was used.
    """

    what: str
    provenance: Provenance
    request_id: str


def weights_source(path: Path, *, public: bool = False) -> Source | None:
    """The source that a safetensors file is, by the provenance in it.

    Args:
        path: of the file.
        public: whether the file may come without one, because somebody said why it is public.

    Returns:
        Nothing for a file without provenance that may be so.

    Raises:
        UsageError: if the file cannot be read, or has no provenance, or a broken one.
    """
    try:
        with cast("Any", safe_open(str(path), framework="numpy")) as file:
            bare = origin.METADATA_KEY not in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a safetensors file ({error})") from error
    if bare and public:
        return None
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Source(
        what="initial weights",
        provenance=origin.read_weights_file(path),
        request_id=f"weights/{digest}",
    )

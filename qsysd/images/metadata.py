"""The metadata of an image, NAME.yaml beside NAME.qcow2: where it comes from. It may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsysd.config import dump, load
from qsysd.errors import QsysdError
from qsysd.files import read_text, write_atomic


def read(path: str) -> dict[str, Any]:
    """Return the metadata in a file; empty if it does not exist or is not valid."""
    try:
        document = load.load_plain(read_text(path) or "", path)
    except QsysdError:
        return {}
    return document if isinstance(document, dict) else {}


def write(path: str, metadata: Mapping[str, object], staged: str) -> None:
    """Write the metadata of an image. staged: the name under which the file is written first."""
    write_atomic(path, dump.dump(metadata), 0o644, staging=staged)

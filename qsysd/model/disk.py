"""A disk of a VM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Disk:
    """A disk of its own; the first one of a VM with an image is an overlay on it.

    size: bytes; None takes the image's.
    """

    size: int | None

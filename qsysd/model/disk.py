"""A disk of a VM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Disk:
    """A disk that belongs to one VM; the first one of a VM with an image is an overlay on it.

    name: unique among the VM's devices, kept when other disks are added or removed. size: bytes; None
    takes the image's.
    """

    name: str
    size: int | None = None

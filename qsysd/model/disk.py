"""Disks of a VM."""

from __future__ import annotations

from dataclasses import dataclass

from qsysd.model import parsers
from qsysd.model.field import Change, field


@dataclass(frozen=True)
class Disk:
    """A virtual disk, a file in the VM's directory; the first one of a VM with an image is an overlay on it.

    size: bytes; None takes the image's.
    """

    name: str = field(
        parsers.device_name(),
        numbered="disk",
        help="unique among the VM's devices; names the file of the disk",
        change=Change.NEVER,
    )
    size: int | None = field(
        parsers.size("G"),
        default=None,
        bare=True,
        help="virtual size; a bare number is GiB; at least 1M",
        default_help="the image's; required for a disk that is not an overlay",
        change=Change.NEVER,
    )

"""What a VM boots, apart from its disks."""

from __future__ import annotations

from dataclasses import dataclass

from qsysd.model import parsers
from qsysd.model.field import field


@dataclass(frozen=True)
class Kernel:
    """Direct kernel boot, without firmware and boot loader."""

    path: str = field(
        parsers.path(),
        key="kernel",
        help="kernel for direct boot: absolute path of a file that every user can read",
        default_help="none",
    )
    initrd: str | None = field(
        parsers.path(),
        default=None,
        help="initial RAM disk of `kernel`: absolute path of a file that every user can read",
    )
    append: str = field(
        parsers.text(),
        default="",
        help="command line of `kernel`; visible to local users in the host's process list",
    )

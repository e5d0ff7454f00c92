"""Direct kernel boot."""

from __future__ import annotations

from qsysd.model.boot import Kernel
from qsysd.qemu.options import Verbatim


def options(kernel: Kernel | None) -> list[Verbatim]:
    """Return the options of a kernel, its initrd and its command line, as far as they are given."""
    if kernel is None:
        return []
    found = [Verbatim("-kernel", kernel.path)]
    if kernel.initrd:
        found.append(Verbatim("-initrd", kernel.initrd))
    if kernel.append:
        found.append(Verbatim("-append", kernel.append))
    return found

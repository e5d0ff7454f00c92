"""Model → QEMU's options, and their arguments (qemu-system-x86_64(1)). Pure.

The accelerator is not among them: `auto` is resolved on the host at each start, and comes before these
arguments in a separate variable.
"""

from __future__ import annotations

from qsysd.model.vm import VMSpec
from qsysd.paths import Scope
from qsysd.qemu import boot, console, disk, machine, nic
from qsysd.qemu.options import Option, Verbatim


def options(spec: VMSpec, scope: Scope) -> list[Option | Verbatim]:
    """Return the options of a VM, without accelerator, CPU model and those of its definition's qemu_args.

    The order counts: QEMU gives the devices their PCI slots in this order.
    """
    return [
        *machine.options(spec),
        *console.options(spec, scope),
        *disk.options(spec, scope),
        *nic.options(spec),
        *boot.options(spec.kernel),
    ]


def build(spec: VMSpec, scope: Scope) -> list[str]:
    """Return QEMU's arguments for a VM, without the program and the accelerator."""
    words = [word for option in options(spec, scope) for word in option.arguments()]
    return [*words, *spec.qemu_args]

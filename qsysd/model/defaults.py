"""A host's defaults for new VMs."""

from __future__ import annotations

from dataclasses import dataclass

from qsysd.model import parsers
from qsysd.model.field import default_of, field
from qsysd.model.nic import Nic
from qsysd.model.vm import Accel, VMSpec


@dataclass(frozen=True)
class Defaults:
    """What replaces the built-in defaults on a host. disk_size: bytes; stop_timeout: seconds."""

    accel: Accel = default_of(VMSpec, "accel")
    memory_mib: int = default_of(VMSpec, "memory_mib")
    cpus: int = default_of(VMSpec, "cpus")
    disk_size: int = field(
        parsers.size("G"),
        default=10 * 1024**3,
        help="size of the disk of a VM with an image whose definition has no `disks`",
    )
    network: str = default_of(Nic, "network")
    stop_timeout: int = default_of(VMSpec, "stop_timeout")

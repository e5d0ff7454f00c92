"""A VM, whole.

A spec is valid when `config` created it. Sizes are in MiB or bytes as the field says, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qsysd.model.disk import Disk
from qsysd.model.nic import Nic


class Accel(StrEnum):
    """How the guest's instructions are run; `auto` is kvm where it truly runs a guest, else tcg."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class Kernel:
    """Direct kernel boot: absolute paths of files that everybody may read."""

    path: str
    initrd: str | None = None
    append: str = ""


@dataclass(frozen=True)
class VMSpec:
    """A VM, whole.

    memory_mib, memory_limit_mib: MiB; the limit is the unit's, None for none. stop_timeout: seconds that
    a guest has to power off. image_digest: SHA-256 of the image that the first disk was created on, None
    where that is not known.
    """

    name: str
    uuid: str
    machine: str
    memory_mib: int
    memory_limit_mib: int | None
    cpus: int
    accel: Accel
    cpu: str | None
    image: str | None
    image_digest: str | None
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    kernel: Kernel | None
    seed: bool
    user: str | None
    ssh_keys: tuple[str, ...]
    depends_on: tuple[str, ...]
    stop_timeout: int
    qemu_args: tuple[str, ...]


@dataclass(frozen=True)
class Defaults:
    """What a VM gets where its creator says nothing. disk_size: bytes; stop_timeout: seconds."""

    accel: Accel = Accel.AUTO
    memory_mib: int = 1024
    cpus: int = 1
    disk_size: int = 10 * 1024**3
    network: str = "default"
    stop_timeout: int = 90

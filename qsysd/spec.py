"""What a VM and a network are: frozen values that import nothing else of qsysd.

A spec is valid when `config` made it. Sizes are in MiB or bytes as the field says, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Accel(StrEnum):
    """How the guest's instructions are run; `auto` is kvm where it truly runs a guest, else tcg."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class NetworkKind(StrEnum):
    """What a network joins its guests to."""

    NAT = "nat"


@dataclass(frozen=True)
class Disk:
    """A disk of its own; the first one of a VM with an image is an overlay on it.

    size: bytes; None takes the image's.
    """

    size: int | None


@dataclass(frozen=True)
class Nic:
    """A network card. The address is what DHCP gives it, and the only one it may use."""

    network: str
    mac: str
    address: str | None = None


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
class NetworkSpec:
    """A network: a bridge, an address pool, DHCP and DNS, a firewall.

    subnet: CIDR, IPv4. host_access: whether guests reach the host's own services.
    """

    name: str
    kind: NetworkKind
    subnet: str
    host_access: bool = False


@dataclass(frozen=True)
class Defaults:
    """What a VM gets where its creator says nothing. disk_size: bytes; stop_timeout: seconds."""

    accel: Accel = Accel.AUTO
    memory_mib: int = 1024
    cpus: int = 1
    disk_size: int = 10 * 1024**3
    network: str = "default"
    stop_timeout: int = 90

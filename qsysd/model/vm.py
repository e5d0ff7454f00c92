"""A VM.

A spec is valid when `config` created it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qsysd import values
from qsysd.model import parsers
from qsysd.model.boot import Kernel
from qsysd.model.disk import Disk
from qsysd.model.field import Change, Inline, ListOf, field
from qsysd.model.nic import Nic

CPUS_MAXIMUM = 1024
# A definition has at least one of these keys with a value that is not empty.
BOOT_KEYS = ("image", "kernel", "disks")


class Accel(StrEnum):
    """How the guest's instructions are executed; `auto` is KVM if it can run a guest here, else TCG."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, kw_only=True)
class VMSpec:
    """A VM.

    memory_mib, memory_limit_mib: MiB; the limit is the unit's, None for none. stop_timeout: seconds.
    uuid, machine: "" until create has chosen them. image_digest: None if it is not known.
    """

    name: str = field(
        parsers.name(), help="`[a-z][a-z0-9-]{0,27}`; also the name of the file", change=Change.NEVER
    )
    uuid: str = field(
        parsers.matching(values.UUID.pattern, "a UUID"),
        default="",
        help="UUID of the VM, and its instance id for cloud-init",
        default_help="chosen at create",
        change=Change.NEVER,
    )
    machine: str = field(
        parsers.matching("[a-z0-9][a-z0-9._-]{0,63}", "a machine type"),
        default="",
        help="QEMU's machine type; create adds the version of the host's QEMU",
        default_help="`q35`",
    )
    memory_mib: int = field(
        parsers.memory(),
        key="memory",
        default=1024,
        help="memory of the guest: a size; a bare number is MiB; at least 16M",
    )
    memory_limit_mib: int | None = field(
        parsers.memory(),
        key="memory_limit",
        default=None,
        help="limit for QEMU and the guest's memory together, at least `memory` + 256M (with TCG 1G more, "
        "for translated code); if QEMU exceeds it, the kernel kills it and systemd restarts it",
    )
    cpus: int = field(
        parsers.integer(1, CPUS_MAXIMUM), default=1, help=f"number of processors, 1 to {CPUS_MAXIMUM}"
    )
    cpu: str | None = field(
        parsers.matching("[A-Za-z0-9][A-Za-z0-9._+,=-]{0,255}", "a CPU model"),
        default=None,
        help="QEMU's CPU model, with its options",
        default_help="`host` with KVM; `max,erms=off,fsrm=off` with TCG, which is slow with these two",
    )
    accel: Accel = field(
        parsers.choice(Accel),
        default=Accel.AUTO,
        help="`auto`, `kvm` or `tcg`; `auto` is KVM if it can run a guest on this host, else TCG",
    )
    image: str | None = field(
        parsers.image(),
        default=None,
        help="name of a base image; the first disk is an overlay on it",
        change=Change.NEVER,
    )
    image_digest: str | None = field(
        parsers.matching(values.SHA256.pattern, "a SHA-256 digest"),
        default=None,
        help="SHA-256 of the image that the first disk was created on; the VM does not start on another "
        "image of that name",
        default_help="recorded at create",
        change=Change.REMOVE,
    )
    disks: tuple[Disk, ...] = field(
        ListOf(Disk),
        default=(),
        help="list of disks",
        default_help="with an image: one, of 10G or the image's size if that is larger",
        change=Change.NEVER,
    )
    nics: tuple[Nic, ...] = field(
        ListOf(Nic),
        absent=lambda _keys: [{}],
        help="list of NICs; an empty list is a VM without one",
        default_help="one",
    )
    kernel: Kernel | None = field(Inline(Kernel), default=None)
    seed: bool = field(
        parsers.boolean(),
        absent=lambda keys: "image" in keys,
        help="whether the VM has a cloud-init disk",
        default_help="`true` with an image that has cloud-init, else `false`",
        change=Change.NEVER,
    )
    user: str | None = field(
        parsers.matching(values.USER.pattern, "a user name"),
        default=None,
        help="login of `qsysd ssh`; it is not created in the guest",
        default_help="the image's",
        change=Change.LIVE,
    )
    ssh_keys: tuple[str, ...] = field(
        ListOf(
            parsers.matching(
                values.SSH_KEY.pattern,
                "an SSH public key",
                schema="(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/]+=*( .*)?",
            )
        ),
        default=(),
        help="public keys for the image's own user; cloud-init reads them at the guest's first boot only",
        default_help="the caller's, and the host's own",
        change=Change.FIRST_BOOT,
    )
    depends_on: tuple[str, ...] = field(
        ListOf(parsers.name()),
        default=(),
        help="VMs to start after and stop before. Ordering only (`After=`): `qsysd start` and `create` also "
        "start them, nothing else does",
    )
    stop_timeout: int = field(
        parsers.duration(),
        default=90,
        help="time that the guest has to power off: `90s`, `5min`, at most `24h`",
    )
    qemu_args: tuple[str, ...] = field(
        ListOf(parsers.text()),
        default=(),
        help="more arguments for QEMU, one per item, unchanged; files that they name must be made visible to "
        "QEMU (docs/unit.md)",
    )

    @property
    def effective_disks(self) -> tuple[Disk, ...]:
        """Return the disks that the VM has: with an image, disk0 where its definition has none."""
        return self.disks or ((Disk("disk0"),) if self.image else ())

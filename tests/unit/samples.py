"""Specs to test with: one that is whole, and as many odd but valid ones as a test asks for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qsysd.model.boot import Kernel
from qsysd.model.disk import Disk
from qsysd.model.nic import Nic
from qsysd.model.vm import CPUS_MAXIMUM, Accel, VMSpec

UUID = "5f2b7b1e-6d3f-4a52-9c57-0d6f3a1b2c3d"
MAC = "52:54:00:12:34:56"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJt5a8mM0T7k me@laptop"

# Whatever some parser on the way from a definition to QEMU gives a meaning to.
NASTY = (
    "", " ", "  x  ", "#", "x #y", ": ", "- x", "!tag", "&a", "*a", "%i", "%%", "%n%H", "$", "$$", "$HOME",
    "${HOME}", "$(id)", "`id`", "'", "''", "it's", '"', '""', '"x', "\\", "\\\\", "\\n", "x\\", '\\"',
    "a,b", ",,", "a=b", ";", ";x", "&&", "|", ">", "<", "*", "?", "[a-z]", "{{ x }}", "{% raw %}",
    "@DIGEST@", "-",
    "--", "-m", "-append", "~", "~root", "null", "Null", "yes", "no", "on", "off", "true", "0", "0123",
    "0x1f",
    "0b1", "1e3", "1_000", ".5", "1.5", "12:30:45", "2024-02-30", "=", "<<", "...", "---", "é", "\u00a0",
    "\u2028x",
    "\u0085", "\ufeff", "😀", "日本語", "\u202e", "x" * 3000,
)  # fmt: skip


def vm(**changes: Any) -> VMSpec:
    """Return the spec of a VM with all of its parts, but for what `changes` says."""
    spec = VMSpec(
        name="web1",
        uuid=UUID,
        machine="pc-q35-7.2",
        memory_mib=512,
        memory_limit_mib=None,
        cpus=2,
        accel=Accel.TCG,
        cpu=None,
        image="debian",
        image_digest="0123456789abcdef" * 4,
        disks=(Disk("disk0", 10 * 1024**3),),
        nics=(Nic("net0", "default", MAC, "10.83.0.10"),),
        kernel=None,
        seed=True,
        user="debian",
        ssh_keys=(KEY,),
        depends_on=(),
        stop_timeout=90,
        qemu_args=(),
    )
    return replace(spec, **changes)


def _text(chance: random.Random) -> str:
    """Return an odd text that a definition may hold: anything but control characters."""
    pieces = [chance.choice(NASTY) for _ in range(chance.randint(1, 4))]
    return "".join(pieces)


def _path(chance: random.Random) -> str:
    return "/" + "".join(chance.choices("abcXYZ019._/+@=~-", k=chance.randint(1, 30))).replace("..", ".")


def _name(chance: random.Random, first: str = "abcxyz") -> str:
    return chance.choice(first) + "".join(chance.choices("abz019-", k=chance.randint(0, 27)))


def _mac(chance: random.Random) -> str:
    return "52:54:00:" + ":".join(f"{chance.randrange(256):02x}" for _ in range(3))


def _nics(chance: random.Random) -> tuple[Nic, ...]:
    macs = sorted({_mac(chance) for _ in range(chance.randint(0, 3))})
    names = chance.sample(("net0", "net1", "net7", "net007", "lan", "on", "x" * 15), len(macs))
    return tuple(
        Nic(name, _name(chance), mac, chance.choice([None, f"10.{chance.randrange(256)}.7.9"]))
        for name, mac in zip(names, macs, strict=True)
    )


def any_vm(chance: random.Random) -> VMSpec:
    """Return a valid spec, as odd as it may be."""
    kernel = None
    if chance.random() < 0.5:
        kernel = Kernel(_path(chance), chance.choice([None, _path(chance)]), _text(chance))
    image = chance.choice([None, "debian", "d.1-x", "null", "no-x"])
    disks = tuple(
        Disk(name, chance.randint(1024**2, 2**60))
        for name in chance.sample(("disk0", "disk1", "disk7", "data", "no"), chance.randint(0, 3))
    )
    if not (image or kernel or disks):
        disks = (Disk("disk0", None),)
    return VMSpec(
        name=_name(chance),
        uuid=UUID,
        machine=chance.choice(["pc-q35-7.2", "microvm", "7.2", "1e3", "on"]),
        memory_mib=chance.randint(16, 2**31),
        memory_limit_mib=chance.choice([None, 2**31 + 256]),
        cpus=chance.randint(1, CPUS_MAXIMUM),
        accel=chance.choice(list(Accel)),
        cpu=chance.choice([None, "host,-vmx", "Haswell-v4", "486", "1e3", "max,+x2apic"]),
        image=image,
        image_digest=chance.choice((None, f"{chance.getrandbits(256):064x}")) if image else None,
        disks=disks,
        nics=_nics(chance),
        kernel=kernel,
        seed=chance.choice([True, False]),
        user=chance.choice([None, "debian", "_x", "no", "null", "on-call"]),
        ssh_keys=chance.choice([(), (KEY,), (KEY, "sk-ssh-ed25519@openssh.com AAAA= # x: 'y'")]),
        depends_on=tuple(sorted({_name(chance, "dmn") for _ in range(chance.randint(0, 2))})),
        stop_timeout=chance.randint(1, 24 * 3600),
        qemu_args=tuple(_text(chance) for _ in range(chance.randint(0, 4))),
    )


def any_vms(count: int, seed: int = 1) -> Iterator[VMSpec]:
    """Yield odd but valid specs, the same ones at each run."""
    chance = random.Random(seed)
    for _ in range(count):
        yield any_vm(chance)

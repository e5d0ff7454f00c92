"""The machine itself: identity, memory, CPUs, sandbox, and the devices that every VM has."""

from __future__ import annotations

from qsysd.model.vm import Accel, VMSpec
from qsysd.qemu.options import Option, Verbatim, device, qom_object
from qsysd.runtime.kvm import CPU_MODELS


def options(spec: VMSpec) -> list[Option | Verbatim]:
    """Return the options of the machine, without accelerator and CPU model."""
    denied = ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")
    return [
        Option("-name", {"guest": spec.name, "debug-threads": True}),
        Verbatim("-uuid", spec.uuid),
        Verbatim("-nodefaults"),
        Verbatim("-no-user-config"),
        Option("-machine", {"type": spec.machine}, "type"),
        Option("-m", {"size": f"{spec.memory_mib}M"}),
        Option("-smp", {"cpus": spec.cpus}),
        Verbatim("-display", "none"),
        Option("-sandbox", {"enable": True, **dict.fromkeys(denied, "deny")}, "enable"),
        # A guest needs random numbers at its first boot, to create its SSH host keys.
        qom_object("rng-builtin", {"id": "rng0"}),
        device("virtio-rng-pci", {"id": "rng0-device", "rng": "rng0"}),
    ]


def accelerator(accel: Accel) -> list[str]:
    """Return the arguments that choose kvm or tcg."""
    return ["-accel", accel.value]


def processor(accel: Accel, cpu: str | None) -> list[str]:
    """Return the arguments that choose the CPU model, under kvm or tcg."""
    return ["-cpu", cpu or CPU_MODELS[accel.value]]

"""Disks, and the cloud-init seed."""

from __future__ import annotations

from qsysd.model.vm import VMSpec
from qsysd.paths import Scope
from qsysd.qemu.options import Option, blockdev, device


def disk_count(spec: VMSpec) -> int:
    """Return how many disks a VM has: an image brings one by itself."""
    return max(len(spec.disks), 1 if spec.image else 0)


def options(spec: VMSpec, scope: Scope) -> list[Option]:
    """Return the options of a VM's disks, in the order in which the firmware tries to boot from them."""
    found: list[Option] = []
    for index in range(disk_count(spec)):
        found += _disk(f"disk{index}", scope.overlay(spec.name, index), index + 1)
    return found + (_seed(scope.seed(spec.name)) if spec.seed else [])


def _disk(name: str, path: str, bootindex: int) -> list[Option]:
    return [
        blockdev("file", {"node-name": f"{name}-file", "filename": path, "discard": "unmap"}),
        blockdev("qcow2", {"node-name": name, "file": f"{name}-file", "discard": "unmap"}),
        device(
            "virtio-blk-pci",
            {
                "id": f"{name}-device",
                "drive": name,
                "bootindex": bootindex,
                # An I/O error (a full disk) pauses the VM: nothing is lost, and `resume` tries again.
                "werror": "stop",
                "rerror": "stop",
            },
        ),
    ]


def _seed(path: str) -> list[Option]:
    return [
        blockdev("file", {"node-name": "seed", "filename": path, "read-only": True}),
        device("virtio-blk-pci", {"id": "seed-device", "drive": "seed"}),
    ]

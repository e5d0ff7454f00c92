"""Disks, and the cloud-init seed."""

from __future__ import annotations

from qsysd.model.disk import Disk
from qsysd.model.vm import VMSpec
from qsysd.paths import Scope
from qsysd.qemu.options import Option, blockdev, device


def options(spec: VMSpec, scope: Scope) -> list[Option]:
    """Return the options of a VM's disks, in the order in which the firmware tries to boot from them."""
    found: list[Option] = []
    for bootindex, disk in enumerate(spec.effective_disks, 1):
        found += _disk(disk, scope.overlay(spec.name, disk.name), bootindex)
    return found + (_seed(scope.seed(spec.name)) if spec.seed else [])


def _disk(disk: Disk, path: str, bootindex: int) -> list[Option]:
    return [
        blockdev("file", {"node-name": f"{disk.name}-file", "filename": path, "discard": "unmap"}),
        blockdev("qcow2", {"node-name": disk.name, "file": f"{disk.name}-file", "discard": "unmap"}),
        device(
            "virtio-blk-pci",
            {
                "id": f"{disk.name}-device",
                "drive": disk.name,
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

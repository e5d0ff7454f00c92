"""Create the files of a new VM."""

from __future__ import annotations

import os

from qsysd import files
from qsysd.errors import InvalidError
from qsysd.host import rendering
from qsysd.host.context import Host
from qsysd.model.vm import VMSpec


def make(host: Host, spec: VMSpec) -> None:
    """Create everything of a VM except its definition: disks, seed, environment file, drop-in, DHCP entries.

    The definition must exist, and an intent to create the VM, whose undo removes everything after an error.
    """
    directory = host.scope.vm_dir(spec.name)
    os.mkdir(directory, 0o700)
    files.sync_directory(host.scope.vms_dir)
    _create_disks(host, spec)
    rendering.write(host, spec)
    files.sync_directory(directory)


def _create_disks(host: Host, spec: VMSpec) -> None:
    for disk in spec.disks:
        path = host.scope.overlay(spec.name, disk.name)
        if spec.image and disk is spec.disks[0]:
            host.images.create_overlay(spec.image, path, disk.size)
        elif disk.size is None:
            raise InvalidError(f"disk {disk.name!r} of {spec.name} needs a size")
        else:
            host.images.create_disk(path, disk.size)
        os.chmod(path, 0o600)
        files.sync_file(path)

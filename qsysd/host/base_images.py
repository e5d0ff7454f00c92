"""Base images: build missing ones, and find the VMs that use them."""

from __future__ import annotations

import os

from qsysd import image_names, paths
from qsysd.errors import NotFoundError
from qsysd.host import locks
from qsysd.host.context import Host
from qsysd.images.catalog import Image, Users
from qsysd.names import in_order


def users(host: Host, name: str) -> Users:
    """Return the VMs whose disks or definitions use an image.

    For a VM with a disk that cannot be read, the image in its definition is used.
    """
    overlays = {vm: _disks(host, vm) for vm in host.store.names()}
    named = [vm for vm in host.store.names() if host.store.summary(vm).image == name]
    found = host.images.users(name, overlays)
    return Users(in_order({*found.vms, *named}), found.unknown)


def _disks(host: Host, vm: str) -> list[str]:
    try:
        names = os.listdir(host.scope.vm_dir(vm))
    except FileNotFoundError:
        return []
    return [os.path.join(host.scope.vm_dir(vm), name) for name in names if paths.is_disk(name)]


def ensure(host: Host, name: str) -> None:
    """Build an image if it does not exist. Raise NotFoundError if it has no recipe either."""
    if host.images.exists(name):
        return
    if name not in image_names.RECIPES:
        raise NotFoundError(
            f"image {name} does not exist",
            hint=image_names.instead(name, [*host.images.names(), *image_names.RECIPES]),
        )
    host.progress(f"image {name} does not exist on this host: building it")
    with locks.locked(host, [locks.of_image(name)]):
        # Another command may have built it before the lock was free.
        if not host.images.exists(name):
            host.images.build(name, progress=host.progress)


def build(
    host: Host, recipe: str, *, name: str | None = None, suite: str | None = None, size: int | None = None
) -> Image:
    """Build an image from a recipe, under the image's lock. size: bytes of the virtual disk.

    Raise InvalidError, ExistsError, HostError, QsysdError.
    """
    with locks.locked(host, [locks.of_image(name or recipe)]):
        return host.images.build(recipe, name=name, suite=suite, size=size, progress=host.progress)

"""Base images: build, import, list, remove."""

from __future__ import annotations

import os
from collections.abc import Sequence

from qsysd import image_names, paths
from qsysd.errors import NotFoundError
from qsysd.images import Image, Users
from qsysd.names import in_order
from qsysd.operations import transaction
from qsysd.operations.host import Host
from qsysd.operations.recovery import recover
from qsysd.values import printable


def list_images(host: Host) -> Sequence[Image]:
    """Return all base images."""
    return host.images.list()


def info(host: Host, name: str) -> tuple[Image, Users]:
    """Return an image and the VMs that use it. Raises NotFoundError."""
    return host.images.get(name), users(host, name)


def users(host: Host, name: str) -> Users:
    """Return the VMs whose disks or definitions use an image.

    A VM with a disk that cannot be read uses the image that its definition names, and no other.
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


def build(
    host: Host, recipe: str, *, name: str | None = None, suite: str | None = None, size: int | None = None
) -> Image:
    """Build an image from a recipe. size: bytes of the virtual disk.

    Raises InvalidError, ExistsError, HostError, QsysdError.
    """
    host.require_root()
    recover(host)
    with transaction.locked(host, [f"image:{name or recipe}"]):
        return host.images.build(recipe, name=name, suite=suite, size=size, progress=host.tell)


def import_file(
    host: Host,
    path: str,
    name: str,
    *,
    user: str | None = None,
    cloud_init: bool = True,
    kind: str | None = None,
) -> Image:
    """Make an image of a disk file. kind: its format, None to detect it.

    Raises InvalidError, ExistsError, QsysdError, TimeoutExpired.
    """
    host.require_root()
    recover(host)
    with transaction.locked(host, [f"image:{name}"]):
        return host.images.import_file(
            path, name, default_user=user, cloud_init=cloud_init, kind=kind, progress=host.tell
        )


def remove(host: Host, names: Sequence[str]) -> None:
    """Remove images. Raises NotFoundError, and StateError while a VM uses one, before any is removed."""
    host.require_root()
    recover(host)
    with transaction.locked(host, [f"image:{name}" for name in names]):
        used = {name: users(host, name) for name in names}
        for name in names:
            host.images.require(name)
            if used[name].vms:
                host.images.remove(name, used[name].vms)  # raises: nothing is removed yet
        for vm, problem in used[names[0]].unknown.items():
            host.tell(f"warning: {vm}: {printable(problem)}; only its definition tells which image it uses")
        for name in names:
            host.images.remove(name, [])


def ensure(host: Host, name: str) -> bool:
    """Build an image that does not exist and has a recipe. Return whether it was built.

    Raises NotFoundError for one that has none.
    """
    if host.images.exists(name):
        return False
    if name not in image_names.RECIPES:
        raise NotFoundError(
            f"image {name} does not exist",
            hint=image_names.instead(name, [*host.images.names(), *image_names.RECIPES]),
        )
    host.tell(f"image {name} does not exist on this host yet: building it, once")
    build(host, name)
    return True

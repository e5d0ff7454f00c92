"""Base images: build, import, list, remove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qsysd.errors import InvalidError
from qsysd.host import base_images
from qsysd.host.changes import changing_images, recover
from qsysd.host.context import Host
from qsysd.images.catalog import Image, Users
from qsysd.values import printable


def list_images(host: Host) -> Sequence[Image]:
    """Return all base images."""
    return host.images.list()


def info(host: Host, name: str) -> tuple[Image, Users]:
    """Return an image and the VMs that use it. Raise NotFoundError."""
    return host.images.get(name), base_images.users(host, name)


def build(
    host: Host, recipe: str, *, name: str | None = None, suite: str | None = None, size: int | None = None
) -> Image:
    """Build an image from a recipe. size: bytes of the virtual disk.

    Raise InvalidError, ExistsError, HostError, QsysdError.
    """
    host.require_root()
    recover(host)
    return base_images.build(host, recipe, name=name, suite=suite, size=size)


def import_file(
    host: Host,
    path: str,
    name: str,
    *,
    user: str | None = None,
    cloud_init: bool = True,
    kind: str | None = None,
) -> Image:
    """Create an image from a disk file. kind: its format, None to detect it.

    Raise InvalidError, ExistsError, QsysdError, TimeoutExpired.
    """
    with changing_images(host, [name]):
        return host.images.import_file(
            path, name, default_user=user, cloud_init=cloud_init, kind=kind, progress=host.progress
        )


@dataclass(frozen=True)
class Removed:
    """The result of removing images. files: of the images that are, or with dry_run would be, removed."""

    files: list[str]


def remove(host: Host, names: Sequence[str], *, dry_run: bool = False) -> Removed:
    """Remove images. Raise NotFoundError, and StateError while a VM uses one, before any is removed.

    dry_run: only return the files; any user may, and whether a VM uses an image is not examined.
    """
    if not names:
        raise InvalidError("missing NAME", hint="qsysd image list")
    names = list(dict.fromkeys(names))
    if dry_run:
        return Removed([host.images.require(name) for name in names])
    with changing_images(host, names):
        used = {name: base_images.users(host, name) for name in names}
        files = []
        for name in names:
            files.append(host.images.require(name))
            if used[name].vms:
                host.images.remove(name, used[name].vms)  # raises before an image is removed
        for vm, problem in used[names[0]].unknown.items():
            host.progress(
                f"warning: {vm}: {printable(problem)}; its image is determined from its definition only"
            )
        for name in names:
            host.images.remove(name, [])
    return Removed(files)

"""Build, import, list and remove images, and create disks on them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsysd import values
from qsysd.errors import ExistsError, InvalidError, NotFoundError, QsysdError, StateError
from qsysd.files import remove
from qsysd.image_names import NAME, NAME_RULE
from qsysd.images import build as recipes
from qsysd.images import convert, formats, metadata, staging
from qsysd.images.formats import BrokenImageError, Header
from qsysd.images.progress import Progress, quiet
from qsysd.names import in_order
from qsysd.paths import Scope
from qsysd.runtime import spawn

# Seconds that qemu-img may take to create an empty file. A full or hung disk reports errors late.
CREATE_TIMEOUT = 60


@dataclass(frozen=True)
class Image:
    """A base image.

    source: `built: debian bookworm`, `imported: /srv/x.vmdk`; sha256: of the file, "" without metadata;
    created: ISO 8601, UTC; virtual_size, file_size: bytes; problem: why no VM can be created from it.
    """

    name: str
    path: str
    source: str
    sha256: str
    default_user: str | None
    cloud_init: bool
    created: str
    virtual_size: int
    file_size: int
    problem: str | None = None


@dataclass(frozen=True)
class Users:
    """The VMs that use an image. unknown: VM → why the image of one of its disks cannot be determined."""

    vms: list[str]
    unknown: dict[str, str]


def check_name(name: str) -> None:
    """Raise InvalidError unless `name` can name an image."""
    if not NAME.fullmatch(name):
        raise InvalidError(f"{name!r} is not valid as the name of an image", hint=f"names match {NAME_RULE}")


class Images:
    """The base images of one scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    # reading

    def names(self) -> list[str]:
        """Return the names of all images in their natural order."""
        try:
            files = os.listdir(self.scope.images_dir)
        except FileNotFoundError:
            return []
        names = (file.removesuffix(".qcow2") for file in files if file.endswith(".qcow2"))
        return in_order(name for name in names if NAME.fullmatch(name))

    def exists(self, name: str) -> bool:
        """Return whether an image of this name exists."""
        return NAME.fullmatch(name) is not None and os.path.exists(self.scope.image(name))

    def require(self, name: str) -> str:
        """Return the path of an image. Raise NotFoundError."""
        if self.exists(name):
            return self.scope.image(name)
        known = ", ".join(self.names())
        hint = f"qsysd image list (images: {known})" if known else "qsysd image build debian"
        raise NotFoundError(f"image {name} does not exist", hint=hint)

    def get(self, name: str) -> Image:
        """Return an image; `problem` is set if it is broken. Raise NotFoundError."""
        path = self.require(name)
        status = os.stat(path)
        data = metadata.read(self.scope.image_metadata(name))
        virtual_size, problem = 0, None
        try:
            virtual_size = formats.check_whole(path).virtual_size
        except (BrokenImageError, OSError) as error:
            problem = str(error)
        if data.get("file_size") not in (None, status.st_size):
            problem = f"{path} does not have the size with which it was created"
        user = data.get("default_user")
        return Image(
            name=name,
            path=path,
            source=str(data.get("source", "unknown")),
            sha256=str(data.get("sha256", "")),
            default_user=None if user is None else str(user),
            cloud_init=bool(data.get("cloud_init", False)),
            created=str(data.get("created") or timestamp(status.st_mtime)),
            virtual_size=virtual_size,
            file_size=status.st_size,
            problem=problem,
        )

    def check(self, name: str) -> Header:
        """Return the header of an image from which VMs can be created. Only three reads: cheap.

        Raise NotFoundError, and BrokenImageError if it is truncated, not qcow2, or refers to other files.
        """
        path = self.require(name)
        try:
            return formats.check_whole(path)
        except BrokenImageError as error:
            hint = f"create it again: qsysd image rm {name}, then qsysd image build or import"
            raise BrokenImageError(f"image {name} is broken: {error.message}", hint=hint) from error
        except OSError as error:
            raise BrokenImageError(f"image {name} cannot be read: {error.strerror}: {path}") from error

    def users(self, name: str, overlays: Mapping[str, Sequence[str]]) -> Users:
        """Return the VMs with a disk on the image, from the headers of the disks.

        overlays: name of a VM → the paths of its disks. All files of a chain of overlays count.
        """
        image = os.path.realpath(self.scope.image(name))
        vms, unknown = set(), {}
        for vm, paths in overlays.items():
            for path in paths:
                try:
                    chain = formats.backing_chain(path)
                except FileNotFoundError:
                    continue
                except BrokenImageError as error:
                    unknown[vm] = error.message
                except OSError as error:
                    unknown[vm] = f"{path} cannot be read: {error.strerror}"
                else:
                    if any(os.path.realpath(base) == image for base in chain):
                        vms.add(vm)
        return Users(in_order(vms), unknown)

    # building, importing, removing

    def import_file(
        self,
        source: str,
        name: str,
        *,
        default_user: str | None = None,
        cloud_init: bool = True,
        kind: str | None = None,
        progress: Progress = quiet,
    ) -> Image:
        """Create an image from a disk image file: qcow2, raw, vmdk, vdi or vhdx.

        kind: the format of the file, None to detect it. Raise InvalidError for other formats and for files
        that refer to other files, ExistsError, QsysdError on a full disk, TimeoutExpired if qemu-img takes
        too long.
        """
        self._check_free(name)
        if default_user is not None and not values.USER.fullmatch(default_user):
            raise InvalidError(
                f"{default_user!r} is not a valid user name", hint=f"names match {values.USER.pattern}"
            )
        path = os.path.abspath(source)
        with staging.directory(self.scope.images_dir, name) as directory:
            file = os.path.join(directory, "image.qcow2")
            convert.import_disk(path, file, progress, kind)
            data = {"source": f"imported: {path}", "default_user": default_user, "cloud_init": cloud_init}
            return self._publish(name, file, data, progress)

    def build(
        self,
        recipe: str,
        *,
        name: str | None = None,
        progress: Progress = quiet,
        suite: str | None = None,
        size: int | None = None,
    ) -> Image:
        """Create an image from a recipe, `debian`. size: bytes of the virtual disk.

        Raise InvalidError for an unknown recipe or suite, ExistsError, HostError if tools are missing,
        QsysdError if the build fails.
        """
        name = name or recipe
        self._check_free(name)
        plan = recipes.plan(recipe, suite=suite, size=size)
        with staging.directory(self.scope.images_dir, name) as directory:
            file = os.path.join(directory, "image.qcow2")
            data = recipes.build(plan, directory, file, progress)
            return self._publish(name, file, data, progress)

    def _check_free(self, name: str) -> None:
        """Raise InvalidError if `name` is not valid, ExistsError if the image exists."""
        check_name(name)
        if os.path.lexists(self.scope.image(name)):
            raise ExistsError(f"image {name} exists", hint=f"qsysd image info {name}, or use another --name")

    def _publish(self, name: str, file: str, data: Mapping[str, object], progress: Progress) -> Image:
        """Turn a finished qcow2 file in the staging directory into the image `name`."""
        created = {
            "sha256": convert.digest(file, progress),
            "file_size": os.stat(file).st_size,
            "created": timestamp(time.time()),
        }
        # Written before the image: without the image it has no effect.
        staged = os.path.join(os.path.dirname(file), "image.yaml")
        metadata.write(self.scope.image_metadata(name), {"name": name, **data, **created}, staged)
        os.chmod(file, 0o644)  # QEMU reads it as an unprivileged user
        try:
            staging.publish(file, self.scope.image(name))
        except ExistsError:
            self._check_free(name)
            raise
        return self.get(name)

    def remove(self, name: str, used_by: Sequence[str]) -> None:
        """Remove an image. Raise NotFoundError, and StateError while VMs use it (`used_by`, see `users`)."""
        self.require(name)
        if used_by:
            plural = "VM " if len(used_by) == 1 else "VMs "
            raise StateError(
                f"image {name} is in use by {plural}{', '.join(used_by)}",
                hint=f"delete them first: qsysd delete {' '.join(used_by)}",
            )
        with staging.directory(self.scope.images_dir, name):
            remove(self.scope.image(name))
            remove(self.scope.image_metadata(name))

    def remove_abandoned(self) -> Sequence[str]:
        """Remove the staging directories of commands that were killed; return the names of their images."""
        return staging.remove_abandoned(self.scope.images_dir)

    # disks

    def create_overlay(self, name: str, path: str, size: int | None) -> int:
        """Create a disk on an image; return its virtual size. size: bytes, None for the size of the image.

        Raise NotFoundError and BrokenImageError as `check`, InvalidError if the size is less than that of
        the image, ExistsError if `path` exists, QsysdError with qemu-img's error message if the disk is full:
        nothing is left at `path` then.
        """
        header = self.check(name)
        if size is not None and size < header.virtual_size:
            raise InvalidError(
                f"a disk of {size} bytes is too small for image {name} of {header.virtual_size} bytes",
                hint=f"use at least {-(-header.virtual_size // 1024**2)}M",
            )
        size = size or header.virtual_size
        backing = os.path.abspath(self.scope.image(name))
        self._create(path, ["-F", "qcow2", "-b", backing], size)
        return size

    def create_disk(self, path: str, size: int) -> None:
        """Create an empty disk. size: bytes. Raise as `create_overlay` does."""
        if size <= 0:
            raise InvalidError(f"a disk cannot have {size} bytes")
        self._create(path, [], size)

    @staticmethod
    def _create(path: str, options: Sequence[str], size: int) -> None:
        """Run `qemu-img create` for a new file; after an error nothing is left at `path`."""
        if os.path.lexists(path):
            raise ExistsError(f"{path} exists", hint="a disk is never overwritten: move the file")
        path = os.path.abspath(path)
        try:
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(size)]
            spawn.run(argv, timeout=CREATE_TIMEOUT)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            if isinstance(error, spawn.CommandError):
                reason = values.printable(spawn.last_words(error.stderr))
                raise QsysdError(f"cannot create the disk {path}: {reason}") from error
            raise

    # Last, because within the class its name hides the type.
    def list(self) -> list[Image]:
        """Return all images, sorted by name, broken ones included."""
        images = []
        for name in self.names():
            with contextlib.suppress(NotFoundError, FileNotFoundError):  # removed meanwhile
                images.append(self.get(name))
        return images


def timestamp(seconds: float) -> str:
    """Return a time in seconds since the epoch as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

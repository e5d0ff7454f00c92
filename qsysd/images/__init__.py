"""Base images: make, import, list, remove them, and put disks on them.

An image is `NAME.qcow2`, read-only from the day it is made, with `NAME.yaml` beside it that says
where it came from. The .qcow2 is what makes an image exist; a lost note costs only the knowledge.
A VM's disk is an overlay whose backing file is the image. See qemu-img(1).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qsysd import values
from qsysd.errors import ExistsError, InvalidError, NotFoundError, QsysdError, StateError
from qsysd.files import remove, write_atomic
from qsysd.image_names import NAME, NAME_RULE
from qsysd.images import formats, staging
from qsysd.images.formats import BrokenImageError, Header
from qsysd.names import in_order
from qsysd.paths import Scope
from qsysd.runtime import spawn

Progress = Callable[[str], None]

# How long qemu-img may take to make an empty file: seconds. A full or hung disk is slow to say so.
CREATE_TIMEOUT = 60


@dataclass(frozen=True)
class Image:
    """A base image.

    source: in words (`built: debian bookworm`, `imported: /srv/x.vmdk`); sha256: of the file, empty
    when the note beside it is lost; created: ISO 8601, UTC; virtual_size, file_size: bytes;
    problem: why no VM can be made from it, or None.
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
    """The VMs that use an image; `unknown`: VM → why one of its disks does not tell what it uses."""

    vms: list[str]
    unknown: dict[str, str]


def quiet(_line: str) -> None:
    """Show nothing: the progress of a caller that has nobody to show it to."""


def check_name(name: str) -> None:
    """Raise InvalidError unless `name` can name an image."""
    if not NAME.fullmatch(name):
        raise InvalidError(f"{name!r} cannot name an image", hint=f"a name is {NAME_RULE}")


class Images:
    """The base images of one scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    # what is there

    def names(self) -> list[str]:
        """Return the names of all images in their natural order."""
        try:
            files = os.listdir(self.scope.images_dir)
        except FileNotFoundError:
            return []
        names = (file.removesuffix(".qcow2") for file in files if file.endswith(".qcow2"))
        return in_order(name for name in names if NAME.fullmatch(name))

    def exists(self, name: str) -> bool:
        """Return whether there is an image of that name."""
        return NAME.fullmatch(name) is not None and os.path.exists(self.scope.image(name))

    def require(self, name: str) -> str:
        """Return the path of an image. Raises NotFoundError, with what to do, when there is none."""
        if self.exists(name):
            return self.scope.image(name)
        known = ", ".join(self.names())
        hint = f"qsysd image list (there are: {known})" if known else "qsysd image build debian"
        raise NotFoundError(f"image {name} does not exist", hint=hint)

    def get(self, name: str) -> Image:
        """Return an image. Raises NotFoundError when there is none; a broken one has `problem` set."""
        path = self.require(name)
        status = os.stat(path)
        note = self._read_note(name)
        virtual_size, problem = 0, None
        try:
            virtual_size = formats.check_whole(path).virtual_size
        except (BrokenImageError, OSError) as error:
            problem = str(error)
        if note.get("file_size") not in (None, status.st_size):
            problem = f"{path} has not the size that it was made with"
        user = note.get("default_user")
        return Image(
            name=name,
            path=path,
            source=str(note.get("source", "unknown")),
            sha256=str(note.get("sha256", "")),
            default_user=None if user is None else str(user),
            cloud_init=bool(note.get("cloud_init", False)),
            created=str(note.get("created") or timestamp(status.st_mtime)),
            virtual_size=virtual_size,
            file_size=status.st_size,
            problem=problem,
        )

    def check(self, name: str) -> Header:
        """Return the header of an image that VMs can be made from.

        Cheap (three reads), so that it can be asked each time. Raises NotFoundError when there is
        none, BrokenImageError when it is truncated, not qcow2, or refers to other files.
        """
        path = self.require(name)
        try:
            return formats.check_whole(path)
        except BrokenImageError as error:
            hint = f"make it again: qsysd image rm {name}, then qsysd image build or import"
            raise BrokenImageError(f"image {name} is broken: {error.message}", hint=hint) from error
        except OSError as error:
            raise BrokenImageError(f"image {name} cannot be read: {error.strerror}: {path}") from error

    def users(self, name: str, overlays: Mapping[str, Sequence[str]]) -> Users:
        """Return the VMs with a disk on the image, from the disks' own headers.

        overlays: a VM's name → the paths of its disks. A chain of overlays counts to its end.
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

    # make and remove

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
        """Make an image from a disk image file: qcow2, raw, vmdk, vdi or vhdx.

        kind: the file's format, None to detect it. Raises InvalidError when it is something else or
        refers to other files, ExistsError when the name is taken, QsysdError on a full disk,
        TimeoutExpired when qemu-img takes too long.
        """
        from qsysd.images import convert

        self.check_free(name)
        if default_user is not None and not values.USER.fullmatch(default_user):
            raise InvalidError(
                f"{default_user!r} is not a user name", hint="a name is [a-z_][a-z0-9_-]{0,31}"
            )
        path = os.path.abspath(source)
        with staging.directory(self.scope.images_dir, name) as directory:
            file = os.path.join(directory, "image.qcow2")
            convert.import_disk(path, file, progress, kind)
            note = {"source": f"imported: {path}", "default_user": default_user, "cloud_init": cloud_init}
            return self.publish(name, file, note, progress)

    def build(
        self,
        recipe: str,
        *,
        name: str | None = None,
        progress: Progress = quiet,
        suite: str | None = None,
        size: int | None = None,
    ) -> Image:
        """Make an image from a recipe; `debian` is the one there is. size: bytes, virtual.

        Raises InvalidError for an unknown recipe or suite, ExistsError when the name is taken,
        HostError when the host lacks the tools, QsysdError when the build fails.
        """
        from qsysd.images import build

        name = name or recipe
        self.check_free(name)
        plan = build.plan(recipe, suite=suite, size=size)
        with staging.directory(self.scope.images_dir, name) as directory:
            file = os.path.join(directory, "image.qcow2")
            note = build.build(plan, directory, file, progress)
            return self.publish(name, file, note, progress)

    def check_free(self, name: str) -> None:
        """Raise InvalidError when `name` cannot name an image, ExistsError when it is taken."""
        check_name(name)
        if os.path.lexists(self.scope.image(name)):
            raise ExistsError(f"image {name} exists", hint=f"qsysd image info {name}, or take another --name")

    def publish(self, name: str, file: str, note: Mapping[str, object], progress: Progress = quiet) -> Image:
        """Turn a finished qcow2 file in the staging directory into the image `name`."""
        from qsysd.images import convert

        digest = convert.digest(file, progress)
        self._write_note(
            name,
            os.path.join(os.path.dirname(file), "image.yaml"),
            {
                "name": name,
                **note,
                "sha256": digest,
                "file_size": os.stat(file).st_size,
                "created": timestamp(time.time()),
            },
        )
        os.chmod(file, 0o644)  # QEMU reads it under a uid of its own
        try:
            staging.publish(file, self.scope.image(name))
        except ExistsError:
            self.check_free(name)
            raise
        return self.get(name)

    def remove(self, name: str, used_by: Sequence[str]) -> None:
        """Remove an image. Raises NotFoundError, StateError while VMs use it (`used_by`, see `users`)."""
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
        """Remove what killed commands left half-made; return the names of those images."""
        return staging.remove_abandoned(self.scope.images_dir)

    # disks

    def create_overlay(self, name: str, path: str, size: int | None) -> int:
        """Make a VM's disk on the image; return its virtual size. size: bytes, None takes the image's.

        Raises NotFoundError and BrokenImageError as `check`, InvalidError when the size is less than
        the image's, ExistsError when `path` is there, QsysdError, with qemu-img's own words and
        nothing left at `path`, when the disk is full.
        """
        header = self.check(name)
        if size is not None and size < header.virtual_size:
            raise InvalidError(
                f"a disk of {size} bytes is too small for image {name}, which has {header.virtual_size}",
                hint=f"take at least {-(-header.virtual_size // 1024**2)}M",
            )
        size = size or header.virtual_size
        backing = os.path.abspath(self.scope.image(name))
        self._create(path, ["-F", "qcow2", "-b", backing], size)
        return size

    def create_disk(self, path: str, size: int) -> None:
        """Make an empty disk. size: bytes. Raises as `create_overlay` does."""
        if size <= 0:
            raise InvalidError(f"a disk of {size} bytes is not possible")
        self._create(path, [], size)

    @staticmethod
    def _create(path: str, options: Sequence[str], size: int) -> None:
        """Run `qemu-img create` for a new file at `path`, or leave nothing there."""
        if os.path.lexists(path):
            raise ExistsError(f"{path} exists", hint="a disk is never written over; move it away")
        path = os.path.abspath(path)
        try:
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(size)]
            spawn.run(argv, timeout=CREATE_TIMEOUT)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            if isinstance(error, spawn.CommandError):
                raise QsysdError(f"cannot make the disk {path}: {spawn.last_words(error.stderr)}") from error
            raise

    # the note beside an image

    def _read_note(self, name: str) -> dict[str, object]:
        """Return the note beside an image, empty when it is lost or broken."""
        import yaml

        path = self.scope.image_metadata(name)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            with open(path, encoding="utf-8") as file:
                note = yaml.load(file, Loader=loader)
        except (OSError, UnicodeError, yaml.YAMLError):
            return {}
        return note if isinstance(note, dict) else {}

    def _write_note(self, name: str, scratch: str, note: Mapping[str, object]) -> None:
        """Write the note beside an image. It is there before the image: alone it means nothing."""
        import yaml

        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text: str = yaml.dump(dict(note), Dumper=dumper, sort_keys=False, allow_unicode=True)
        write_atomic(self.scope.image_metadata(name), text, 0o644, staging=scratch)

    # The last one: within the class its name hides the type.
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

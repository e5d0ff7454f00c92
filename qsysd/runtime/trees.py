"""Remove directories in which QEMU's user could write, or below which something may be mounted.

No link is followed: each directory is opened by its name in the one above. No mount point is entered,
not even a bind mount of the same file system. One descriptor is open at a time at any depth, and no path
is built, so neither the recursion limit nor PATH_MAX ends a removal half-way.
"""

from __future__ import annotations

import errno
import os
import stat

from qsysd.errors import QsysdError, StateError
from qsysd.runtime import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Choice = Callable[[os.stat_result, str, int], bool]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def mount_points(path: str) -> list[str]:
    """Return the mount points at and below `path` in this mount namespace, sorted (proc(5), mountinfo)."""
    top = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    found = set()
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            place = _unescaped(line.split(b" ")[4])
            if place == top or place.startswith(f"{top}/"):
                found.add(place)
    return sorted(found)


def _unescaped(field: bytes) -> str:
    """Return a field of mountinfo, in which spaces and backslashes are octal numbers."""
    first, *others = field.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in others))


def refuse_mounts(path: str) -> None:
    """Raise StateError if something is mounted at `path` or below it."""
    found = mount_points(path)
    if found:
        raise StateError(
            f"{path} was not removed: {found[0]} is a mount point",
            hint=f"umount {found[0]}, and run the command again",
        )


def remove(path: str) -> None:
    """Remove a directory with everything in it, or a file, if it exists.

    Raise StateError, before anything is removed, if something is mounted at `path` or below it, and
    QsysdError if something cannot be removed.
    """
    if not os.path.lexists(path):
        return
    refuse_mounts(path)
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            _Removal(path, None).run()
        else:
            os.unlink(path)
    except OSError as error:
        raise QsysdError(f"{path} cannot be removed: {error.strerror}: {shown(error.filename)}") from error


def remove_some(path: str, choice: Choice) -> bool:
    """Remove from a directory what `choice` returns True for; return whether the directory is removed too.

    choice: is called with the status of a file that is not a directory, its name, and its depth (0:
    directly in `path`). Empty directories are removed; mount points, and what cannot be removed, stay.
    """
    if not os.path.lexists(path):
        return True
    try:
        _Removal(path, choice).run()
    except OSError:
        return False
    return not os.path.lexists(path)


def shown(name: object) -> str:
    """Return a file name, which QEMU may have chosen, without what a terminal would interpret."""
    return "".join(char if char.isprintable() else "?" for char in str(name)[:80])


class _Removal:
    """One walk through a tree. choice: as for `remove_some`; None removes everything or raises OSError."""

    def __init__(self, path: str, choice: Choice | None) -> None:
        self.path = path
        self.choice = choice

    def run(self) -> None:
        """Remove the tree, the deepest directories first."""
        above: list[tuple[str, os.stat_result, list[str]]] = []
        names = [os.path.basename(self.path)]
        # Links in the path of the tree are the administrator's.
        self.here = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.mount = _mount_id(self.here)
            while names or above:
                if names:
                    name = names.pop()
                    status = os.fstat(self.here)
                    if self._enter(name):
                        above.append((name, status, names))
                        names = self._remove_files(len(above) - 1)
                else:
                    name, status, names = above.pop()
                    self._leave(status)
                    self._rmdir(name)
        finally:
            os.close(self.here)

    def _remove_files(self, depth: int) -> list[str]:
        """Remove the files of the open directory; return the directories in it."""
        directories = []
        with os.scandir(self.here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                elif self.choice is None:
                    os.unlink(entry.name, dir_fd=self.here)
                elif self.choice(entry.stat(follow_symlinks=False), entry.name, depth):
                    try:
                        os.unlink(entry.name, dir_fd=self.here)
                    except OSError:
                        continue  # a mount point, or already removed
        return directories

    def _enter(self, name: str) -> bool:
        """Open a directory in the open one, in its place, unless it is a mount point."""
        below = os.open(name, _DIRECTORY, dir_fd=self.here)
        if _mount_id(below) != self.mount:
            os.close(below)
            if self.choice is None:
                raise OSError(errno.EBUSY, "something is mounted there", name)
            return False
        os.close(self.here)
        self.here = below
        return True

    def _leave(self, status: os.stat_result) -> None:
        """Open the directory above, in place of the open one. status: its status on the way down."""
        up = os.open("..", _DIRECTORY, dir_fd=self.here)
        os.close(self.here)
        self.here = up
        if not os.path.samestat(os.fstat(up), status):
            raise OSError(errno.ESTALE, "a directory was moved meanwhile", "..")

    def _rmdir(self, name: str) -> None:
        try:
            os.rmdir(name, dir_fd=self.here)
        except OSError:
            if self.choice is None:
                raise


def _mount_id(descriptor: int) -> bytes:
    """Return the mount of an open file; bind mounts of one file system differ (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return line
    return b""

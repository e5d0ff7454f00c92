"""A staging directory: published atomically, or removed with everything in it.

`.NAME.part/` in the images' directory holds everything of an image that is not complete. The command
that creates the image holds a flock on it, which ends with the command: a directory that nobody has
locked was left by a command that was killed, and `remove_abandoned` removes it. Two commands cannot
create the same image at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from qsysd.errors import ExistsError, QsysdError, StateError
from qsysd.files import sync_directory
from qsysd.runtime import trees

PREFIX, SUFFIX = ".", ".part"


def _try_lock(path: str) -> int | None:
    """Return a descriptor that holds the directory's lock, or None while another command holds it.

    Raise FileNotFoundError if the directory does not exist, or was removed while it was being locked.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous holder may have removed it, and another command may have created it again.
        if os.stat(path).st_ino == os.fstat(fd).st_ino:
            return fd
        raise FileNotFoundError(path)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise


@contextlib.contextmanager
def directory(images_dir: str, name: str) -> Iterator[str]:
    """Hold the empty directory `.NAME.part/` for a block, and remove it afterwards; yield its path.

    Raise StateError while another command holds it.
    """
    os.makedirs(images_dir, mode=0o755, exist_ok=True)
    path = os.path.join(images_dir, f"{PREFIX}{name}{SUFFIX}")
    fd = _hold(path, name)
    try:
        for entry in os.listdir(path):
            trees.remove(os.path.join(path, entry))
        yield path
    finally:
        with contextlib.suppress(QsysdError):  # a mount that a build left: the next command reports it
            trees.remove(path)
        os.close(fd)


def _hold(path: str, name: str) -> int:
    """Create and lock a staging directory; return the descriptor that holds the lock. Raise StateError."""
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        with contextlib.suppress(FileNotFoundError):
            fd = _try_lock(path)
            if fd is not None:
                return fd
            raise StateError(
                f"image {name} is being created or removed by another command",
                hint="wait until that command has ended: qsysd image list",
            )


def publish(file: str, target: str) -> None:
    """Move a complete file to `target`, durably. Raise ExistsError if `target` exists."""
    with open(file, "rb") as complete:
        os.fsync(complete.fileno())
    try:
        os.link(file, target)
    except FileExistsError as error:
        raise ExistsError(f"{target} exists") from error
    os.unlink(file)
    sync_directory(os.path.dirname(target))


def remove_abandoned(images_dir: str) -> list[str]:
    """Remove the staging directories of commands that were killed; return the names of their images."""
    removed = []
    try:
        entries = os.listdir(images_dir)
    except FileNotFoundError:
        return []
    for entry in entries:
        name = entry[len(PREFIX) : -len(SUFFIX)]
        if not (entry.startswith(PREFIX) and entry.endswith(SUFFIX) and name):
            continue
        path = os.path.join(images_dir, entry)
        try:
            fd = _try_lock(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if fd is not None:
            try:
                trees.remove(path)
                removed.append(name)
            except QsysdError:
                pass  # the next build of this image reports what is mounted there
            finally:
                os.close(fd)
    return removed

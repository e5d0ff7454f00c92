"""A place to make an image in, which either becomes the image at one blow or vanishes.

`.NAME.part/` in the images' directory holds everything that is not finished. Its maker holds a
flock on it, which dies with the maker: a directory that nobody holds is what a killed command left,
and `clean_partials` removes it. Two commands cannot make the same image at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from qsysd import trees
from qsysd.errors import ExistsError, QsysdError, StateError
from qsysd.files import sync_directory

PREFIX, SUFFIX = ".", ".part"


def _try_lock(path: str) -> int | None:
    """Return a descriptor that holds the directory's lock, or None while another holds it.

    Raises FileNotFoundError when the directory is not there, or went away while being locked.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one that held it may have removed it, and another have made it again, in between.
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
def partial(images_dir: str, name: str) -> Iterator[str]:
    """Hold `.NAME.part/`, empty, while the block runs, and remove it with what is left in it.

    Yields its path. Raises StateError while another command holds it.
    """
    os.makedirs(images_dir, mode=0o755, exist_ok=True)
    path = os.path.join(images_dir, f"{PREFIX}{name}{SUFFIX}")
    fd = None
    while fd is None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        with contextlib.suppress(FileNotFoundError):
            fd = _try_lock(path)
            if fd is None:
                raise StateError(
                    f"image {name} is being made or removed by another command",
                    hint="wait for it to end: qsysd image list",
                )
    try:
        for name in os.listdir(path):
            trees.remove(os.path.join(path, name))
        yield path
    finally:
        with contextlib.suppress(QsysdError):  # a mount that a build left: the next command names it
            trees.remove(path)
        os.close(fd)


def publish(file: str, target: str) -> None:
    """Move a finished file to `target`, durably, and never over a file that is there.

    Raises ExistsError when it is.
    """
    with open(file, "rb") as done:
        os.fsync(done.fileno())
    try:
        os.link(file, target)
    except FileExistsError as error:
        raise ExistsError(f"{target} exists") from error
    os.unlink(file)
    sync_directory(os.path.dirname(target))


def clean_partials(images_dir: str) -> list[str]:
    """Remove what killed commands left half-made; return the names of the images they made."""
    cleaned = []
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
                cleaned.append(name)
            except QsysdError:
                pass  # the next build of this image names what is mounted there
            finally:
                os.close(fd)
    return cleaned

"""Open a file that belongs to another user, without following links of other users.

`sudo qsysd image import /home/bob/disk.qcow2` runs as root in a directory that bob can change at any time.
With a link there, he could make root copy any file of the host into an image, which every user can read.
"""

from __future__ import annotations

import os
import stat

from qsysd.errors import InvalidError, QsysdError
from qsysd.values import printable

# The kernel's limit of links in one path: path_resolution(7).
LINKS_MAX = 40


def open_file(path: str) -> int:
    """Return a descriptor of a regular file, for reading. path: absolute.

    The last component must not be a link; other components may be links that belong to root or to the user
    who called sudo. Raise InvalidError, QsysdError.
    """
    try:
        place = _find(path)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise InvalidError(f"{path} is not a regular file")
            # Opens the file that was found, even if its name now belongs to another.
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidError(f"file {path} does not exist") from error
    except OSError as error:
        raise QsysdError(f"{path} cannot be read: {error.strerror}") from error


def _find(path: str) -> int:
    """Return an O_PATH descriptor of the file; each component of its path is checked."""
    links = 0
    names = path.split("/")[::-1]
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while names:
            name = names.pop()
            if name in ("", "."):
                continue
            there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            status = os.fstat(there)
            if not stat.S_ISLNK(status.st_mode):
                os.close(here)
                here = there
                continue
            links += 1
            target = os.readlink("", dir_fd=there)
            os.close(there)
            _check_link(path, name, target, status.st_uid, last=not any(names), links=links)
            names += target.split("/")[::-1]
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found, here = here, -1
        return found
    finally:
        if here >= 0:
            os.close(here)


def _check_link(path: str, name: str, target: str, owner: int, *, last: bool, links: int) -> None:
    """Raise InvalidError for a link that is not followed."""
    if last:
        raise InvalidError(f"{path} is a link to {printable(target)}", hint="use the name of the file itself")
    if owner not in _trusted() or links > LINKS_MAX:
        raise InvalidError(
            f"{path}: its component {printable(name)} is a link that belongs to another user",
            hint="use a path without this link",
        )


def _trusted() -> set[int]:
    """Return the users whose links are followed: root, the caller and the user who called sudo."""
    sudo = os.environ.get("SUDO_UID", "")
    return {0, os.getuid(), *([int(sudo)] if sudo.isascii() and sudo.isdigit() else [])}

"""The owner of a VM's directory: QEMU's user while the VM runs, root otherwise."""

from __future__ import annotations

import errno
import os
import stat

from qsysd.errors import HostError
from qsysd.runtime import trees


def set_owner(directory: str, uid: int, gid: int) -> None:
    """Give a VM's directory and the regular files in it to a user.

    A compromised QEMU can leave anything in the directory, so nothing is followed: symlinks,
    devices and files with a second name are refused. Sockets are removed. Raise HostError.
    """
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{directory}: {error.strerror}", hint="qsysd doctor") from error
    try:
        for name in os.listdir(root):
            _set_file_owner(directory, root, name, uid, gid)
        os.fchown(root, uid, gid)
        os.fchmod(root, 0o700)
    finally:
        os.close(root)


def _set_file_owner(directory: str, root: int, name: str, uid: int, gid: int) -> None:
    """Give one file to a user, or remove it if it is a socket. root: the open directory."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    except OSError as error:
        # open(2): a socket, of a QEMU that has exited
        if error.errno == errno.ENXIO and _is_socket(name, root):
            os.unlink(name, dir_fd=root)
            return
        raise HostError(f"{directory}/{trees.shown(name)}: {error.strerror}") from error
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise HostError(
                f"{directory}/{trees.shown(name)} is not a plain file of one name",
                hint="a VM's directory holds only its own files; move it away",
            )
        os.fchown(file, uid, gid)
    finally:
        os.close(file)


def _is_socket(name: str, directory: int) -> bool:
    return stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)

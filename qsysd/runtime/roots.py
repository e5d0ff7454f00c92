"""The directory that becomes QEMU's root: systemd mounts into it what QEMU can see.

A start creates it first and a stop removes it last: it exists as long as there is something to clean up.
"""

from __future__ import annotations

import os
import stat

from qsysd.runtime import trees

# The mount points in a VM's root, and Debian's links in it. Without the first, systemd creates /root with a
# mode that makes a kernel in it inaccessible.
DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var", "var/tmp")
LINKS = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")


def make(directory: str) -> None:
    """Create a VM's root, or what is missing of it."""
    for name in ("", *DIRECTORIES):
        path = os.path.join(directory, name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o755)  # regardless of the umask: QEMU's user needs access
    for name in LINKS:
        link = os.path.join(directory, name)
        if os.path.isdir(f"/usr/{name}") and not os.path.lexists(link):
            os.symlink(f"usr/{name}", link)


def _is_ours(status: os.stat_result, name: str, depth: int) -> bool:
    """Return whether qsysd or systemd created a file in a VM's root.

    systemd creates an empty file or directory for each mount point, and the link run/host/os-release.
    Anything else is the administrator's, and stays.
    """
    if stat.S_ISLNK(status.st_mode):
        return (depth == 0 and name in LINKS) or (depth == 2 and name == "os-release")
    return stat.S_ISREG(status.st_mode) and status.st_size == 0 and status.st_nlink == 1


def remove(directory: str) -> bool:
    """Remove what qsysd and systemd created in a VM's root; return whether it no longer exists."""
    return trees.remove_some(directory, _is_ours)

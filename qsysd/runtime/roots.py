"""The directory that becomes a VM's root: systemd mounts into it what QEMU may see.

A start creates it first and a stop removes it last, so it also tells whether there is something to
clean up.
"""

from __future__ import annotations

import os
import stat

from qsysd.runtime import trees

# What systemd mounts into a VM's root, and what Debian has in the place of directories of old. systemd
# itself would create /root with a mode that hides a kernel in it.
DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var", "var/tmp")
LINKS = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")


def make(directory: str) -> None:
    """Create a VM's root. What exists of it already stays."""
    for name in ("", *DIRECTORIES):
        path = os.path.join(directory, name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o755)  # whatever the umask is: QEMU's user has to get through
    for name in LINKS:
        link = os.path.join(directory, name)
        if os.path.isdir(f"/usr/{name}") and not os.path.lexists(link):
            os.symlink(f"usr/{name}", link)


def _is_ours(status: os.stat_result, name: str, depth: int) -> bool:
    """Return whether qsysd or systemd created a file in a VM's root.

    systemd creates an empty file or directory for each mount point, and the link run/host/os-release.
    Anything else was put there by a person, and stays.
    """
    if stat.S_ISLNK(status.st_mode):
        return (depth == 0 and name in LINKS) or (depth == 2 and name == "os-release")
    return stat.S_ISREG(status.st_mode) and status.st_size == 0 and status.st_nlink == 1


def remove(directory: str) -> bool:
    """Remove what qsysd and systemd created of a VM's root; return whether nothing is left of it."""
    return trees.remove_some(directory, _is_ours)

"""The files of a unit on disk, compared with what systemd has read of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from qsysd import paths
from qsysd.files import read_bytes

# Seconds that a daemon-reload may take: files that change in the middle of it count as changed.
RELOAD_TIME = 10.0


def drop_in_digest(path: str) -> str:
    """Return the digest of its rendering that a drop-in of qsysd contains; "" without one."""
    start = f"Environment={paths.DROP_IN_MARK}="
    for line in (read_bytes(path) or b"").decode("utf-8", "replace").splitlines():
        if line.startswith(start):
            return line.removeprefix(start)
    return ""


def lacks_drop_in(unit: str, fragment: str, environment: Sequence[str]) -> bool:
    """Return whether a unit was loaded without the drop-in of qsysd that it has on disk.

    fragment: the path of its unit file. environment: its environment, in which systemd shows the digest.
    NeedDaemonReload does not report a drop-in in a directory that was created after the unit was loaded.
    """
    digest = drop_in_digest(os.path.join(os.path.dirname(fragment), f"{unit}.d", paths.DROP_IN))
    return digest != "" and f"{paths.DROP_IN_MARK}={digest}" not in environment


def are_newer(
    unit: str, fragment: str, drop_ins: Sequence[str], environment: Sequence[str], read: float
) -> bool:
    """Return whether the files of a unit may differ from those that systemd read at the time `read`."""
    pattern = os.path.join(glob.escape(os.path.dirname(fragment)), f"{unit}.d", "*.conf")
    if not set(glob.glob(pattern)) <= set(drop_ins):
        return True
    try:
        return any(_has_changed(path, environment, read - RELOAD_TIME) for path in (fragment, *drop_ins))
    except OSError:
        return True


def _has_changed(path: str, environment: Sequence[str], read: float) -> bool:
    """Return whether a file may differ from the one that was read: by digest if it has one, else by time."""
    if os.path.basename(path) == paths.DROP_IN:
        return f"{paths.DROP_IN_MARK}={drop_in_digest(path)}" not in environment
    return os.stat(path).st_mtime > read

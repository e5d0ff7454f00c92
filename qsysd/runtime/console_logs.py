"""The verb trim-logs: a guest must not fill the host's disk by its console."""

from __future__ import annotations

import os
import stat

from qsysd.paths import Scope
from qsysd.runtime.unit import log

SIZE_MAX = 4 * 1024 * 1024  # bytes
SIZE_KEPT = 1024 * 1024


def trim(scope: Scope) -> None:
    """Cut each console log that is too long to its last part.

    QEMU appends, so the file is cut in place. QEMU can write to the directory: nothing is followed.
    """
    for vm in os.listdir(scope.vms_dir):
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(scope.console_log(vm), flags)
        except OSError:
            continue  # it does not exist, or is not a regular file
        try:
            _trim(file)
        except OSError as error:  # for example a full disk; continue with the other VMs' logs
            log(f"{scope.console_log(vm)}: {error.strerror}")
        finally:
            os.close(file)


def _trim(file: int) -> None:
    """Cut one open file. A file with a second name is not QEMU's to lose. Raise OSError."""
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size > SIZE_MAX:
        tail = os.pread(file, SIZE_KEPT, status.st_size - SIZE_KEPT)
        os.ftruncate(file, 0)
        os.pwrite(file, tail, 0)

"""Act as the user that systemd chose for a VM, where QEMU controls what root would open.

QEMU can write to the directory of its sockets. For its user, a link there leads to nothing that QEMU
itself could not reach.
"""

from __future__ import annotations

import os

from qsysd.paths import Scope


def drop_privileges(scope: Scope, vm: str, *, permanently: bool = False) -> None:
    """Act, from root, as the owner of the VM's RuntimeDirectory.

    Until `restore_privileges` the real user remains root, so that QEMU's user can neither signal nor
    trace this process (kill(2), ptrace(2)). permanently: no way back.
    """
    if os.getuid() != 0:
        return
    user = os.stat(scope.runtime(vm))
    os.setgroups([])
    if permanently:
        os.setresgid(user.st_gid, user.st_gid, user.st_gid)
        os.setresuid(user.st_uid, user.st_uid, user.st_uid)
    else:
        os.setegid(user.st_gid)
        os.seteuid(user.st_uid)


def restore_privileges() -> None:
    """Act as root again after `drop_privileges`."""
    if os.getuid() == 0:
        os.seteuid(0)
        os.setegid(0)

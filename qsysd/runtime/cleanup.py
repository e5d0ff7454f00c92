"""The verb after-stop: remove what a VM that has ended leaves behind."""

from __future__ import annotations

import os

from qsysd.errors import HostError
from qsysd.paths import Scope
from qsysd.runtime import roots, taps, trees, vm_directory
from qsysd.runtime.ports import parse_ports
from qsysd.runtime.unit import log


def after_stop(scope: Scope, vm: str) -> None:
    """Remove, as root, what before-start created; do nothing where nothing exists.

    Host shutdown removes all of it by itself, and the next start hands the directory over again.
    """
    if os.path.exists(scope.shutdown_mark):
        return
    taps.unplug(scope, parse_ports(os.environ.get("QSYSD_NICS", "")), vm)
    trees.remove(scope.started_record(vm))
    root = scope.root_dir(vm)
    if os.path.exists(root) and not roots.remove(root):
        log(f"{root} holds files or mounts that are not qsysd's; they were left in place")
    if os.path.isdir(scope.vm_dir(vm)):
        try:
            vm_directory.set_owner(scope.vm_dir(vm), 0, 0)
        except HostError as error:
            # No other service's user can reach it (the directory above is root's), and a start refuses it.
            log(f"{error.message}; it was not given back to root")

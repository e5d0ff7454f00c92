"""The monitors of one VM, for the steps of its unit."""

from __future__ import annotations

import os

from qsysd.errors import HostError
from qsysd.paths import Scope
from qsysd.runtime.qmp import Client, MonitorError, socket_path
from qsysd.runtime.unit import log


class Monitors:
    """The monitors of a VM. Create it as root: the VM's user may not search the directory of all VMs.

    Raise HostError where the VM's directory cannot be opened.
    """

    def __init__(self, scope: Scope, vm: str) -> None:
        self._paths = {
            purpose: socket_path(scope, vm, scope.monitor(vm, purpose))
            for purpose in ("stop", "ready", "cli")
        }
        directory = os.path.dirname(self._paths["stop"])
        try:
            self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{directory}: {error.strerror}", hint=f"qsysd kill {vm}") from error

    def connect(self, purpose: str, timeout: float) -> Client:
        """Return a connection to a monitor. timeout: seconds. Raise MonitorError."""
        return Client(self._paths[purpose], timeout=timeout, directory=self._directory)

    def connect_any(self) -> Client | None:
        """Return a connection to the first monitor that answers, or None; log the others' errors."""
        for purpose in self._paths:
            try:
                return self.connect(purpose, 1.0)
            except MonitorError as error:
                log(f"{error}")
        return None

"""The parts of one host that operations work with, each made when it is first used."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from qsysd import paths
from qsysd.errors import HostError, QsysdError
from qsysd.paths import Scope

if TYPE_CHECKING:
    from qsysd.images import Images
    from qsysd.store import Store
    from qsysd.systemd import Systemd

Tell = Callable[[str], None]
# Called again and again during a wait with what is waited for, the seconds so far, how far that has come, and
# a detail that changes quickly; with "" when the wait is over.
Waiting = Callable[[str, float, str, str], None]


def silent(_message: str) -> None:
    """Show nothing."""


def silent_wait(_what: str, _seconds: float, _state: str, _detail: str) -> None:
    """Show nothing of a wait."""


class Host:
    """One scope of one host. `tell` gets lines of progress and warnings, `waiting` what a wait is for."""

    def __init__(
        self, scope: Scope | None = None, *, tell: Tell = silent, waiting: Waiting = silent_wait
    ) -> None:
        self.scope = scope or Scope()
        self.tell = tell
        self.waiting = waiting

    @cached_property
    def systemd(self) -> Systemd:
        """systemd, over D-Bus."""
        from qsysd.systemd import Systemd

        return Systemd()

    @cached_property
    def store(self) -> Store:
        """The definitions."""
        from qsysd.store import Store

        return Store(self.scope)

    @cached_property
    def images(self) -> Images:
        """The base images."""
        from qsysd.images import Images

        return Images(self.scope)

    def require_root(self) -> None:
        """Raise QsysdError for anybody but root, before anything was tried."""
        if os.geteuid() != 0:
            raise QsysdError("this needs root", hint="run it with sudo, or as root")

    def require_ready(self) -> None:
        """Raise QsysdError for anybody but root, and HostError on a host that was never set up."""
        self.require_root()
        unit = os.path.join(self.scope.unit_dir, paths.UNIT_TEMPLATE)
        if not os.path.exists(unit):
            raise HostError(f"this host is not set up: {unit} does not exist", hint="qsysd setup")

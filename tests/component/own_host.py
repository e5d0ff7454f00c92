"""A host of a test's own, below a directory, with a systemd that is not the real one."""

from __future__ import annotations

from fake_systemd import FakeSystemd

from qsysd.host.context import Host
from qsysd.paths import Scope


class OwnHost(Host):
    """A host below a directory; `told` and `waits` hold what it reported, `fake` is its systemd."""

    def __init__(self, scope: Scope) -> None:
        self.told: list[str] = []
        self.waits: list[str] = []
        super().__init__(
            scope, tell=self.told.append, waiting=lambda what, *_details: self.waits.append(what)
        )
        self.fake = FakeSystemd(scope)
        self.__dict__["systemd"] = self.fake

    def require_root(self) -> None:
        """Be content with anybody: all is below a directory of theirs."""

"""A host of a test's own, below a directory, with a systemd that is not the real one."""

from __future__ import annotations

from fake_systemd import FakeSystemd

from qsysd.cli.delete import contents_lines
from qsysd.host.context import Host
from qsysd.host.progress import Progress
from qsysd.operations import delete
from qsysd.paths import Scope


class RecordedProgress(Progress):
    """Progress that is kept: lines in `told`; of waits the subjects in `waits`, the states in `details`."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.waits: list[str] = []
        self.details: list[tuple[str, str, str]] = []

    def __call__(self, line: str) -> None:
        self.told.append(line)

    def waiting(self, what: str, seconds: float = 0.0, state: str = "", detail: str = "") -> None:
        self.waits.append(what)
        self.details.append((what, state, detail))


class OwnHost(Host):
    """A host below a directory; `told` and `waits` hold what it reported, `fake` is its systemd."""

    def __init__(self, scope: Scope) -> None:
        self.fake = FakeSystemd(scope)
        recorded = RecordedProgress()
        self.told, self.waits, self.details = recorded.told, recorded.waits, recorded.details
        super().__init__(scope, systemd=self.fake, progress=recorded)

    def require_root(self) -> None:
        """Accept every user: all files are below a directory of the test."""


def removed_by_delete(host: Host, name: str) -> list[str]:
    """Return what a delete of a VM would remove, as the command shows it."""
    (contents,) = delete.delete(host, [name], dry_run=True).contents
    return contents_lines(contents)

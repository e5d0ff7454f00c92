"""A systemd that keeps its state in a file: like the real one, it outlives the command that speaks with it.

Each call is announced by an audit event, `test.systemd`, before it takes effect.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qsysd.errors import HostError
from qsysd.paths import Scope
from qsysd.systemd import JobResult, Systemd, UnitState

RUNNING = ("active", "running")
OFF = ("inactive", "dead")


class FakeSystemd(Systemd):
    """What operations need of systemd, on a scope below a directory.

    results: what a job for a unit ends as when it is not `done`. gone: the bus cannot be reached;
    goes_at: not from this call on. main_process: QEMU's, by default this one, or $FAKE_MAIN_PID.
    during: called with method and unit while a job runs, as if from another program.
    tick: what the caller of the latest jobs wants called while it waits.
    """

    def __init__(self, scope: Scope) -> None:
        super().__init__("none")
        self.scope = scope
        self.file = os.path.join(scope.root, "systemd.json")
        self.results: dict[str, str] = {}
        self.gone = False
        self.goes_at = ""
        self.main_process = int(os.environ.get("FAKE_MAIN_PID", os.getpid()))
        self.calls: list[str] = []
        self.timeouts: list[float] = []
        self.stop_timeout = 120  # seconds; TimeoutStopSec of every unit
        self.during: Callable[[str, str], None] = lambda method, unit: None
        self.tick: Callable[[float], None] = lambda seconds: None

    def _called(self, method: str, *arguments: object) -> None:
        self.gone = self.gone or method == self.goes_at
        if self.gone:
            raise HostError("the system bus cannot be reached: it is gone")
        sys.audit("test.systemd", method)
        self.calls.append(" ".join([method, *map(str, arguments)]))

    def _units(self) -> dict[str, list[str]]:
        try:
            with open(self.file, encoding="utf-8") as file:
                units: dict[str, list[str]] = json.load(file)
                return units
        except FileNotFoundError:
            return {}

    def set(self, unit: str, active: str, sub: str) -> None:
        """Put a unit into a state."""
        lock = os.open(self.scope.root or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            # one after the other: several commands work with the one systemd
            fcntl.flock(lock, fcntl.LOCK_EX)
            units = self._units()
            units[unit] = [active, sub]
            # in one piece: the real one does not lose its state when a client is killed
            temporary = os.open(self.file + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(temporary, json.dumps(units).encode())
            os.close(temporary)
            os.replace(self.file + ".new", self.file)
        finally:
            os.close(lock)

    def run_jobs(
        self,
        method: str,
        units: Iterable[str],
        *,
        timeout: float,
        enqueued: Callable[[], None] | None = None,
        tick: Callable[[float], None] | None = None,
    ) -> list[JobResult]:
        self.timeouts.append(timeout)
        found = []
        units = list(units)
        for unit in units:
            self._called(method, unit)
        if enqueued:
            enqueued()
        self.tick = tick or self.tick
        for unit in units:
            self.during(method, unit)
            result = self.results.get(unit, "done")
            if result == "done":
                self.set(unit, *(OFF if method == "StopUnit" else RUNNING))
            elif result == "failed":
                self.set(unit, "failed", "failed")
            found.append(JobResult(unit, result))
        return found

    def kill(self, unit: str, signal: int, *, who: str = "main") -> None:
        self._called("KillUnit", unit, who, int(signal))

    def reset_failed(self, unit: str) -> None:
        self._called("ResetFailedUnit", unit)
        if self._units().get(unit, [""])[0] == "failed":
            self.set(unit, *OFF)

    def refresh(self, units: Iterable[str]) -> bool:
        self._called("refresh", *units)
        return False

    def reload(self) -> None:
        self._called("Reload")

    def enable(self, units: Sequence[str]) -> None:
        self._called("EnableUnitFiles", *units)
        os.makedirs(self.scope.wants_dir, exist_ok=True)
        for unit in units:
            link = os.path.join(self.scope.wants_dir, unit)
            if not os.path.lexists(link):
                os.symlink("/etc/systemd/system/template", link)

    def disable(self, units: Sequence[str]) -> None:
        self._called("DisableUnitFiles", *units)
        for unit in units:
            link = os.path.join(self.scope.wants_dir, unit)
            if os.path.islink(link):
                os.unlink(link)

    def _list(self, active: Sequence[str], names: Sequence[str]) -> dict[str, UnitState]:
        import fnmatch

        self._called("ListUnitsByPatterns", *names)
        return {
            unit: UnitState(unit, "loaded", state, sub, f"/{unit}")
            for unit, (state, sub) in self._units().items()
            if any(fnmatch.fnmatchcase(unit, pattern) for pattern in names)
            and (state, sub) != OFF
            and (not active or state in active)
        }

    def get(self, path: str, interface: str, name: str) -> Any:
        self._called("Get", path, name)
        values = {"MainPID": self.main_process, "Version": "252.1", "SystemState": "running"}
        service = {"Result": "success", "NRestarts": 0, "MemoryCurrent": 2**64 - 1}
        timing = {"TimeoutStopUSec": self.stop_timeout * 1_000_000, "ActiveEnterTimestampMonotonic": 0}
        return {**values, **service, **timing, "After": []}[name]

    def get_all(self, objects: Sequence[str], interface: str, name: str) -> Sequence[Any]:
        return [self.get(path, interface, name) for path in objects]

    def selected(self, state: UnitState, names: Mapping[str, str]) -> dict[str, Any]:
        return {name: self.get(state.path, interface, name) for name, interface in names.items()}

    def properties(self, unit: str) -> Mapping[str, Any]:
        self._called("GetAll", unit)
        return {
            "Result": "success",
            "NRestarts": 0,
            "MemoryCurrent": 2**64 - 1,
        }

"""systemd over D-Bus (org.freedesktop.systemd1(5)): jobs, properties, enabling. The only user of pydbus.

Every call has a deadline, and outlives a restart of the bus or a daemon-reexec.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qsysd import paths
from qsysd.errors import HostError, NotFoundError, QsysdError
from qsysd.files import read_bytes
from qsysd.systemd.bus import (
    CALL_TIMEOUT,
    MANAGER,
    NAME,
    PATH,
    PROPERTIES,
    SERVICE,
    UNIT,
    Bus,
    BusLost,
    UnitRefused,
)
from qsysd.systemd.jobs import JobResult, Jobs

__all__ = ["BusLost", "JobResult", "StopPlan", "Systemd", "UnitRefused", "UnitState"]

_WITH_PROCESSES = ("active", "activating", "deactivating", "reloading")
_ACTIVE = (*_WITH_PROCESSES, "failed", "maintenance", "refreshing")

# A unit without files, so that nothing of its own is ever to be read again.
_NEVER_CHANGED = "/org/freedesktop/systemd1/unit/init_2escope"
_RELOAD_TAKES = 10.0  # seconds, for files that change in the middle of it


class UnitState(NamedTuple):
    """A loaded unit as systemd sees it at this moment (systemctl list-units)."""

    name: str
    load: str
    active: str
    sub: str
    path: str


NOT_LOADED = "not-loaded"


def not_loaded(unit: str) -> UnitState:
    """Return the state of a unit that systemd has not in memory: off."""
    return UnitState(unit, NOT_LOADED, "inactive", "dead", "")


class StopPlan(NamedTuple):
    """What bounds a unit's stop: TimeoutStopSec in seconds, and the units that it stops before."""

    timeout: float
    after: Sequence[str]


def _has_changed(path: str, environment: Sequence[str], read: float) -> bool:
    """Return whether a unit's file may be another than the one that was read, at the time `read` or later.

    One of qsysd's own says it exactly, by a mark that systemd shows among the unit's environment.
    """
    if os.path.basename(path) == paths.DROP_IN:
        return _mark(path) not in environment
    return os.stat(path).st_mtime > read


def _mark(path: str) -> str | None:
    """Return the variable that a drop-in of qsysd's sets to tell its renderings apart; None without it."""
    start = f"Environment={paths.DROP_IN_MARK}="
    for line in (read_bytes(path) or b"").decode("utf-8", "replace").splitlines():
        if line.startswith(start):
            return line.removeprefix("Environment=")
    return None


class Systemd:
    """A connection to the system's or a private bus's systemd, made at the first call."""

    def __init__(self, address: str | None = None, *, patience: float | None = None) -> None:
        self._bus = Bus(address, patience=patience)
        self._jobs = Jobs(self._bus)

    def _call(self, *call: Any, path: str = PATH) -> Any:
        """As `Bus.call`, again while the bus or systemd is away: each call made here can be repeated."""
        return self._bus.patiently(lambda: self._bus.call(*call, path=path))

    def _manager(self, method: str, signature: str, arguments: Sequence[Any], reply: str) -> Any:
        return self._call(MANAGER, method, signature, arguments, reply)

    # jobs

    def run_jobs(
        self,
        method: str,
        units: Iterable[str],
        *,
        timeout: float,
        enqueued: Callable[[], None] | None = None,
        tick: Callable[[float], None] | None = None,
    ) -> list[JobResult]:
        """Run StartUnit, StopUnit, RestartUnit or ReloadUnit on units in parallel and wait for all.

        timeout: seconds for all of them together. enqueued: called when all jobs are enqueued.
        tick: called with the seconds waited, every few seconds of a long wait.
        A unit that systemd does not know ends as `not-found`, one that it takes no job for as
        `refused`, one whose job did not end in time as `waiting`: the job itself goes on.
        """
        return self._jobs.run(method, units, timeout=timeout, enqueued=enqueued, tick=tick)

    def kill(self, unit: str, signal: int, *, who: str = "main") -> None:
        """Send a signal to a unit's main process (`main`) or to all of them (`all`)."""
        self._manager("KillUnit", "(ssi)", (unit, who, signal), "()")

    def reset_failed(self, unit: str) -> None:
        """Clear a unit's failed state and its count of starts; quiet for a unit that is not loaded."""
        try:
            self._manager("ResetFailedUnit", "(s)", (unit,), "()")
        except NotFoundError:
            return

    def refresh(self, units: Iterable[str]) -> bool:
        """Make sure that the next start of these units uses the files that are on disk now.

        A unit that is not loaded is read at its start; only one that is pinned in memory with an old
        drop-in needs the daemon-reload, which PID 1 pays for with all its units. Returns whether it
        was needed. Call it after ResetFailedUnit and once for all the units of a command.
        """
        loaded = list(self.states(units).values())
        flags = self.get_all([unit.path for unit in loaded], UNIT, "NeedDaemonReload")
        flagged = [unit for unit, flag in zip(loaded, flags, strict=True) if flag]
        if flagged and self.get(_NEVER_CHANGED, UNIT, "NeedDaemonReload"):
            # From systemd 256 on, enabling one unit says this of all units: look at their files instead.
            flagged = [unit for unit in flagged if self._is_stale(unit)]
        needed = bool(flagged) or self._any_lacks_its_drop_in(loaded)
        if needed:
            self.reload()
        return needed

    def _any_lacks_its_drop_in(self, units: Sequence[UnitState]) -> bool:
        """Return whether one of these units was loaded without the drop-in of qsysd's that it has on disk.

        NeedDaemonReload does not report a drop-in in a directory that was created after the unit was loaded.
        """
        objects = [unit.path for unit in units]
        fragments = self.get_all(objects, UNIT, "FragmentPath")
        environments = self.get_all(objects, SERVICE, "Environment")
        for unit, fragment, environment in zip(units, fragments, environments, strict=True):
            mark = _mark(os.path.join(os.path.dirname(fragment), f"{unit.name}.d", paths.DROP_IN))
            if mark is not None and mark not in environment:
                return True
        return False

    def _is_stale(self, unit: UnitState) -> bool:
        """Return whether a loaded unit's files may be others than those that systemd has read."""
        import glob

        fragment = str(self.get(unit.path, UNIT, "FragmentPath"))
        used = list(self.get(unit.path, UNIT, "DropInPaths"))
        there = glob.glob(os.path.join(glob.escape(os.path.dirname(fragment)), f"{unit.name}.d", "*.conf"))
        if not set(there) <= set(used):
            return True
        read = max(self.get(PATH, MANAGER, f"UnitsLoad{when}Timestamp") for when in ("Start", "")) / 1e6
        environment = self.get(unit.path, SERVICE, "Environment")
        try:
            return any(_has_changed(path, environment, read - _RELOAD_TAKES) for path in [fragment, *used])
        except OSError:
            return True

    def reload(self) -> None:
        """Let systemd read all unit files again (systemctl daemon-reload)."""
        self._manager("Reload", "()", (), "()")

    # enabling

    def enable(self, units: Sequence[str]) -> None:
        """Make units start at host boot; nothing is reloaded, as nothing needs it before that boot."""
        self._manager("EnableUnitFiles", "(asbb)", (list(units), False, True), "(ba(sss))")

    def disable(self, units: Sequence[str]) -> None:
        """Undo `enable`."""
        self._manager("DisableUnitFiles", "(asb)", (list(units), False), "(a(sss))")

    # reading

    def version(self) -> int:
        """Return systemd's version as a number: 252."""
        import re

        text = str(self.get(PATH, MANAGER, "Version"))
        found = re.match(r"[0-9]+", text)
        if not found:
            raise HostError(f"systemd tells no version: {text!r}")
        return int(found[0])

    def system_state(self) -> str:
        """Return what `systemctl is-system-running` says: running, degraded, stopping, …"""
        return str(self.get(PATH, MANAGER, "SystemState"))

    def active_units(self, *patterns: str) -> dict[str, UnitState]:
        """Return the units whose names match and that are anything but off, by name, in one call.

        Each unit in systemd's answer costs a tenth of a millisecond, and most may be off.
        """
        return self._list(_ACTIVE, patterns)

    def _list(self, active: Sequence[str], names: Sequence[str]) -> dict[str, UnitState]:
        (rows,) = self._manager("ListUnitsByPatterns", "(asas)", (active, names), "(a(ssssssouso))")
        return {row[0]: UnitState(row[0], row[2], row[3], row[4], row[6]) for row in rows}

    def states(self, units: Iterable[str]) -> dict[str, UnitState]:
        """Return those of the named units that are loaded, by name, in one call."""
        names = list(units)
        return self._list((), names) if names else {}

    def state(self, unit: str) -> UnitState:
        """Return a unit's state; one that is not loaded is inactive and dead."""
        return self.states([unit]).get(unit) or not_loaded(unit)

    def get(self, path: str, interface: str, name: str) -> Any:
        """Return one property of an object."""
        (value,) = self._call(PROPERTIES, "Get", "(ss)", (interface, name), "(v)", path=path)
        return value

    def main_pid(self, state: UnitState) -> int | None:
        """Return the main process of a service in this state, or None when it has none."""
        return self.main_pids([state]).get(state.name)

    def main_pids(self, states: Iterable[UnitState]) -> dict[str, int]:
        """Return the main processes of those services that have one, by unit; all are asked at once."""
        alive = [state for state in states if state.active in _WITH_PROCESSES]
        values = self.get_all([state.path for state in alive], SERVICE, "MainPID")
        return {state.name: int(pid) for state, pid in zip(alive, values, strict=True) if pid}

    def stop_plans(self, states: Iterable[UnitState]) -> Sequence[StopPlan]:
        """Return what bounds the stops of these services; a service's whole properties take systemd 13 ms."""
        objects = [state.path for state in states]
        timeouts = self.get_all(objects, SERVICE, "TimeoutStopUSec")
        after = self.get_all(objects, UNIT, "After")
        return [
            StopPlan(microseconds / 1e6, units) for microseconds, units in zip(timeouts, after, strict=True)
        ]

    def get_all(self, objects: Sequence[str], interface: str, name: str) -> Sequence[Any]:
        """Return one property of several objects, asked for all at once. Raises as `get` does."""
        return self._bus.patiently(lambda: self._get_all(objects, interface, name)) if objects else []

    def _get_all(self, objects: Sequence[str], interface: str, name: str) -> Sequence[Any]:
        connection = self._bus.connection()
        from gi.repository import Gio, GLib

        values: dict[str, Any] = {}

        def arrived(_connection: Any, result: Any, path: str) -> None:
            try:
                values[path] = connection.call_finish(result).unpack()[0]
            except GLib.Error as error:
                values[path] = self._bus.error(error, name)

        arguments = GLib.Variant("(ss)", (interface, name))
        reply = GLib.VariantType.new("(v)")
        for path in objects:
            connection.call(
                *(NAME, path, PROPERTIES, "Get", arguments, reply, Gio.DBusCallFlags.NONE),
                *(int(CALL_TIMEOUT * 1000), None, arrived, path),
            )
        context = GLib.MainContext.default()
        while len(values) < len(set(objects)):
            context.iteration(True)
        for value in values.values():
            if isinstance(value, QsysdError):
                raise value
        return [values[path] for path in objects]

    def properties(self, unit: str) -> Mapping[str, Any]:
        """Return a unit's properties, its service's included. The unit gets loaded if it is not."""
        (path,) = self._manager("LoadUnit", "(s)", (unit,), "(o)")
        values: dict[str, Any] = {}
        for interface in (UNIT, SERVICE):
            (part,) = self._call(PROPERTIES, "GetAll", "(s)", (interface,), "(a{sv})", path=path)
            values.update(part)
        return values

"""systemd over D-Bus (org.freedesktop.systemd1(5)): jobs, properties, enabling. The only user of pydbus.

Every call has a timeout, and is repeated after a restart of the bus or a daemon-reexec.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsysd.errors import HostError, NotFoundError
from qsysd.systemd import unit_files
from qsysd.systemd.bus import MANAGER, PATH, PROPERTIES, SERVICE, UNIT, Bus, BusLost, UnitRefused
from qsysd.systemd.jobs import JobResult, Jobs

__all__ = ["BusLost", "JobResult", "StopPlan", "Systemd", "UnitRefused", "UnitState"]

_WITH_PROCESSES = ("active", "activating", "deactivating", "reloading")
_ACTIVE = (*_WITH_PROCESSES, "failed", "maintenance", "refreshing")

# A unit without files, which by itself never needs a daemon-reload.
_NEVER_CHANGED = "/org/freedesktop/systemd1/unit/init_2escope"

NOT_LOADED = "not-loaded"


@dataclass(frozen=True)
class UnitState:
    """The state of a loaded unit (systemctl list-units)."""

    name: str
    load: str
    active: str
    sub: str
    path: str


def not_loaded(unit: str) -> UnitState:
    """Return the state of a unit that is not loaded: off."""
    return UnitState(unit, NOT_LOADED, "inactive", "dead", "")


@dataclass(frozen=True)
class StopPlan:
    """What limits the stop of a unit: TimeoutStopSec in seconds, and the units that it stops before."""

    timeout: float
    after: Sequence[str]


class Systemd:
    """systemd on the system bus or on a private bus. The connection is made at the first call."""

    def __init__(self, address: str | None = None, *, patience: float | None = None) -> None:
        self._bus = Bus(address, patience=patience)
        self._jobs = Jobs(self._bus)

    def _call(self, *call: Any, path: str = PATH) -> Any:
        """Return the reply of `Bus.call`; repeat the call while the bus is lost."""
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
        The result of a unit that does not exist is `not-found`, of one for which systemd accepts no job
        `refused`, of one whose job did not end in time `waiting`: that job continues.
        """
        return self._jobs.run(method, units, timeout=timeout, enqueued=enqueued, tick=tick)

    def kill(self, unit: str, signal: int, *, who: str = "main") -> None:
        """Send a signal to a unit's main process (`main`) or to all of them (`all`)."""
        self._manager("KillUnit", "(ssi)", (unit, who, signal), "()")

    def reset_failed(self, unit: str) -> None:
        """Clear the failed state and the start counter of a unit, if it is loaded."""
        try:
            self._manager("ResetFailedUnit", "(s)", (unit,), "()")
        except NotFoundError:
            return

    def refresh(self, units: Iterable[str]) -> bool:
        """Reload systemd if it has not read the files of these units; return whether it was necessary.

        A unit that is not loaded is read at its start. Only a unit that is loaded with an old drop-in
        needs the daemon-reload, in which PID 1 reads all its units. Call this after ResetFailedUnit, and
        once for all units of a command.
        """
        loaded = list(self.states(units).values())
        flags = self.get_all([unit.path for unit in loaded], UNIT, "NeedDaemonReload")
        flagged = [unit for unit, flag in zip(loaded, flags, strict=True) if flag]
        if flagged and self.get(_NEVER_CHANGED, UNIT, "NeedDaemonReload"):
            # From systemd 256 on, enabling one unit sets this for all units: compare their files instead.
            flagged = [unit for unit in flagged if self._is_stale(unit)]
        needed = bool(flagged) or self._any_lacks_its_drop_in(loaded)
        if needed:
            self.reload()
        return needed

    def _any_lacks_its_drop_in(self, units: Sequence[UnitState]) -> bool:
        """Return whether one of these units was loaded without the drop-in that it has on disk."""
        objects = [unit.path for unit in units]
        fragments = self.get_all(objects, UNIT, "FragmentPath")
        environments = self.get_all(objects, SERVICE, "Environment")
        return any(
            unit_files.lacks_drop_in(unit.name, fragment, environment)
            for unit, fragment, environment in zip(units, fragments, environments, strict=True)
        )

    def _is_stale(self, unit: UnitState) -> bool:
        """Return whether a loaded unit's files may differ from those that systemd has read."""
        read = max(self.get(PATH, MANAGER, f"UnitsLoad{when}Timestamp") for when in ("Start", "")) / 1e6
        return unit_files.are_newer(
            unit.name,
            str(self.get(unit.path, UNIT, "FragmentPath")),
            list(self.get(unit.path, UNIT, "DropInPaths")),
            self.get(unit.path, SERVICE, "Environment"),
            read,
        )

    def reload(self) -> None:
        """Reload all unit files (systemctl daemon-reload)."""
        self._manager("Reload", "()", (), "()")

    # enabling

    def enable(self, units: Sequence[str]) -> None:
        """Enable units to start at host boot. Nothing is reloaded: only that boot reads the links."""
        self._manager("EnableUnitFiles", "(asbb)", (list(units), False, True), "(ba(sss))")

    def disable(self, units: Sequence[str]) -> None:
        """Undo `enable`."""
        self._manager("DisableUnitFiles", "(asb)", (list(units), False), "(a(sss))")

    # reading

    def version(self) -> int:
        """Return systemd's version as a number: 252."""
        text = str(self.get(PATH, MANAGER, "Version"))
        found = re.match(r"[0-9]+", text)
        if not found:
            raise HostError(f"systemd reports no valid version: {text!r}")
        return int(found[0])

    def system_state(self) -> str:
        """Return the state as `systemctl is-system-running` prints it: running, degraded, stopping, …"""
        return str(self.get(PATH, MANAGER, "SystemState"))

    def active_units(self, *patterns: str) -> dict[str, UnitState]:
        """Return the units whose names match and that are not inactive, by name, in one call.

        systemd takes 0.1 ms for each unit in its reply, and most may be inactive.
        """
        return self._list(_ACTIVE, patterns)

    def _list(self, active: Sequence[str], names: Sequence[str]) -> dict[str, UnitState]:
        (rows,) = self._manager("ListUnitsByPatterns", "(asas)", (active, names), "(a(ssssssouso))")
        return {row[0]: UnitState(row[0], row[2], row[3], row[4], row[6]) for row in rows}

    def states(self, units: Iterable[str]) -> dict[str, UnitState]:
        """Return the state of each of these units that is loaded, by name, in one call."""
        names = list(units)
        return self._list((), names) if names else {}

    def state(self, unit: str) -> UnitState:
        """Return the state of a unit; a unit that is not loaded is inactive and dead."""
        return self.states([unit]).get(unit) or not_loaded(unit)

    def get(self, path: str, interface: str, name: str) -> Any:
        """Return one property of an object."""
        (value,) = self._call(PROPERTIES, "Get", "(ss)", (interface, name), "(v)", path=path)
        return value

    def main_pid(self, state: UnitState) -> int | None:
        """Return the main process of a service in this state; None without one."""
        return self.main_pids([state]).get(state.name)

    def main_pids(self, states: Iterable[UnitState]) -> dict[str, int]:
        """Return the main process of each service that has one, by unit; all are queried in parallel."""
        alive = [state for state in states if state.active in _WITH_PROCESSES]
        values = self.get_all([state.path for state in alive], SERVICE, "MainPID")
        return {state.name: int(pid) for state, pid in zip(alive, values, strict=True) if pid}

    def stop_plans(self, states: Iterable[UnitState]) -> Sequence[StopPlan]:
        """Return what limits the stop of each service.

        Two properties are queried; for all properties of a service, systemd takes 13 ms.
        """
        objects = [state.path for state in states]
        timeouts = self.get_all(objects, SERVICE, "TimeoutStopUSec")
        after = self.get_all(objects, UNIT, "After")
        return [
            StopPlan(microseconds / 1e6, units) for microseconds, units in zip(timeouts, after, strict=True)
        ]

    def get_all(self, objects: Sequence[str], interface: str, name: str) -> Sequence[Any]:
        """Return one property of several objects, queried in parallel. Raise as `get` does."""
        wanted = [(path, interface, name) for path in objects]
        return self._bus.patiently(lambda: self._bus.get_all(wanted)) if wanted else []

    def selected(self, state: UnitState, names: Mapping[str, str]) -> dict[str, Any]:
        """Return some properties of a loaded unit by name. names: the interface of each.

        For all properties of a service, systemd takes 13 ms.
        """
        wanted = [(state.path, interface, name) for name, interface in names.items()]
        values = self._bus.patiently(lambda: self._bus.get_all(wanted))
        return dict(zip(names, values, strict=True))

    def properties(self, unit: str) -> Mapping[str, Any]:
        """Return the properties of a unit and its service. This loads the unit."""
        (path,) = self._manager("LoadUnit", "(s)", (unit,), "(o)")
        values: dict[str, Any] = {}
        for interface in (UNIT, SERVICE):
            (part,) = self._call(PROPERTIES, "GetAll", "(s)", (interface,), "(a{sv})", path=path)
            values.update(part)
        return values

"""systemd over D-Bus (org.freedesktop.systemd1(5)): jobs, properties, enabling. The only user of pydbus.

StartUnit and its like only enqueue a job. So JobRemoved is subscribed to first, then the call made,
then the job's own path waited for: the signal can come before the reply. Every call has a deadline.
No proxy objects: introspecting one costs more than any call made here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qsysd import paths
from qsysd.errors import HostError, NotFoundError, QsysdError, TimeoutExpired
from qsysd.files import read_bytes

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_UNIT = "org.freedesktop.systemd1.Unit"
_SERVICE = "org.freedesktop.systemd1.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"

_WITH_PROCESSES = ("active", "activating", "deactivating", "reloading")
_NOT_OFF = (*_WITH_PROCESSES, "failed", "maintenance", "refreshing")

TICK = 2.0  # seconds of waiting until the first word about it
CALL_TIMEOUT = 30.0  # seconds; PID 1 was seen busy for 2 s in a daemon-reload with 1000 units

# A unit without files, so that nothing of its own is ever to be read again.
_NEVER_CHANGED = "/org/freedesktop/systemd1/unit/init_2escope"
_RELOAD_TAKES = 10.0  # seconds, for files that change in the middle of it

_HINTS = {
    "org.freedesktop.DBus.Error.AccessDenied": "run it as root: sudo qsysd …",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": "run it as root: sudo qsysd …",
    "org.freedesktop.DBus.Error.NoReply": "systemd is busy or hangs: systemctl status",
}


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


class UnitRefused(QsysdError):
    """systemd does not take a job for this unit: it is masked or broken, or the host shuts down."""


class JobResult(NamedTuple):
    """How a job ended: `done`, or systemd's word for why not (failed, canceled, timeout, dependency, …).

    refusal: systemd's words where it took no job for the unit; the result is `refused` then.
    """

    unit: str
    result: str
    refusal: str | None = None

    @property
    def done(self) -> bool:
        """Whether the job did what was asked."""
        return self.result in ("done", "skipped")


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

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._bus: Any = None
        self._jobs: dict[str, str] = {}
        self._waiting = False

    # calls

    def _connection(self) -> Any:
        if self._bus is None:
            try:
                from gi.repository import Gio, GLib

                if not self._address:
                    # GLib's own threads connect while pydbus is imported, and SystemBus() joins them.
                    Gio.bus_get(Gio.BusType.SYSTEM, None, lambda *_: None)
                import pydbus
            except ImportError as error:
                raise HostError(
                    f"pydbus cannot be used: {error}", hint="apt install python3-pydbus python3-gi"
                ) from error
            try:
                self._bus = pydbus.connect(self._address) if self._address else pydbus.SystemBus()
            except GLib.Error as error:
                raise HostError(
                    f"the system bus cannot be reached: {error.message}",
                    hint="systemctl status dbus; qsysd needs a host that systemd booted",
                ) from error
            # A bus that restarts must not take this process with it.
            self._bus.con.set_exit_on_close(False)
        return self._bus.con

    def _call(
        self,
        interface: str,
        method: str,
        signature: str,
        arguments: Sequence[Any],
        reply: str,
        *,
        path: str = _PATH,
        timeout: float = CALL_TIMEOUT,
    ) -> Any:
        """Call a method; return its reply as a tuple.

        Raises HostError when the bus or systemd is gone, NotFoundError for an unknown unit,
        TimeoutExpired, QsysdError with systemd's own words otherwise.
        """
        connection = self._connection()
        from gi.repository import Gio, GLib

        try:
            answer = connection.call_sync(
                _NAME,
                path,
                interface,
                method,
                GLib.Variant(signature, tuple(arguments)),
                GLib.VariantType.new(reply),
                Gio.DBusCallFlags.NONE,
                int(timeout * 1000),
                None,
            )
        except GLib.Error as error:
            raise self._error(error, method) from error
        return answer.unpack()

    def _error(self, error: Any, method: str) -> QsysdError:
        from gi.repository import Gio

        name = Gio.dbus_error_get_remote_error(error) or ""
        # Gio's own dbus_error_strip_remote_error() changes a copy only.
        said = error.message.removeprefix(f"GDBus.Error:{name}: ")
        words = f"systemd: {method}: {said}"
        if name.endswith((".NoSuchUnit", ".UnknownObject", ".LoadFailed")):
            return NotFoundError(words)
        if error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.TIMED_OUT) or name.endswith(".NoReply"):
            return TimeoutExpired(words, hint=_HINTS["org.freedesktop.DBus.Error.NoReply"])
        gone = (Gio.IOErrorEnum.CLOSED, Gio.IOErrorEnum.CONNECTION_CLOSED, Gio.IOErrorEnum.BROKEN_PIPE)
        if any(error.matches(Gio.io_error_quark(), code) for code in gone):
            self._forget_bus()
            return HostError(f"{words} (the bus is gone)", hint="systemctl status dbus")
        if name.endswith((".ServiceUnknown", ".NameHasNoOwner", ".Disconnected")) or "Spawn." in name:
            return HostError(words, hint="qsysd needs a host that systemd booted")
        if name.startswith("org.freedesktop.systemd1."):
            return UnitRefused(said)
        return QsysdError(words, hint=_HINTS.get(name))

    def _forget_bus(self) -> None:
        """Make the next call connect, and subscribe, anew."""
        self._bus = None
        self._waiting = False

    def _manager(self, method: str, signature: str, arguments: Sequence[Any], reply: str) -> Any:
        return self._call(_MANAGER, method, signature, arguments, reply)

    # jobs

    def _subscribe(self) -> None:
        if self._waiting:
            return
        self._connection()
        self._manager("Subscribe", "()", (), "()")
        self._bus.subscribe(
            # Anybody may send signals on the system bus: those of systemd only.
            sender=_NAME,
            iface=_MANAGER,
            signal="JobRemoved",
            object=_PATH,
            signal_fired=lambda _sender, _object, _iface, _signal, values: self._jobs.update(
                {values[1]: values[3]}
            ),
        )
        self._waiting = True

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
        self._subscribe()
        jobs: dict[str, str] = {}
        results: dict[str, JobResult] = {}
        units = list(dict.fromkeys(units))
        for unit in units:
            try:
                (job,) = self._manager(method, "(ss)", (unit, "replace"), "(o)")
            except NotFoundError:
                results[unit] = JobResult(unit, "not-found")
            except UnitRefused as error:
                results[unit] = JobResult(unit, "refused", error.message)
            else:
                jobs[unit] = job
        if enqueued:
            enqueued()
        self._wait(lambda: all(job in self._jobs for job in jobs.values()), timeout, tick)
        for unit, job in jobs.items():
            results[unit] = JobResult(unit, self._jobs.pop(job, "waiting"))
        return [results[unit] for unit in units]

    def _wait(
        self, condition: Callable[[], bool], timeout: float, tick: Callable[[float], None] | None
    ) -> None:
        """Run the main context until `condition()` holds or the time is over."""
        from gi.repository import GLib

        context = GLib.MainContext.default()
        started = time.monotonic()
        next_tick = TICK
        # Without a timer the context would sleep until the next signal, deadline or not.
        timer = GLib.timeout_add(int(min(TICK / 2, timeout) * 1000) + 1, lambda: True)
        try:
            while not condition() and (waited := time.monotonic() - started) < timeout:
                if tick and waited >= next_tick:
                    tick(waited)
                    next_tick += 2 * TICK
                context.iteration(True)
                if self._bus.con.is_closed():
                    self._forget_bus()
                    raise HostError("the system bus went away", hint="systemctl status dbus")
        finally:
            GLib.source_remove(timer)

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
        flags = self.get_all([unit.path for unit in loaded], _UNIT, "NeedDaemonReload")
        flagged = [unit for unit, flag in zip(loaded, flags, strict=True) if flag]
        if flagged and self.get(_NEVER_CHANGED, _UNIT, "NeedDaemonReload"):
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
        fragments = self.get_all(objects, _UNIT, "FragmentPath")
        environments = self.get_all(objects, _SERVICE, "Environment")
        for unit, fragment, environment in zip(units, fragments, environments, strict=True):
            mark = _mark(os.path.join(os.path.dirname(fragment), f"{unit.name}.d", paths.DROP_IN))
            if mark is not None and mark not in environment:
                return True
        return False

    def _is_stale(self, unit: UnitState) -> bool:
        """Return whether a loaded unit's files may be others than those that systemd has read."""
        import glob

        fragment = str(self.get(unit.path, _UNIT, "FragmentPath"))
        used = list(self.get(unit.path, _UNIT, "DropInPaths"))
        there = glob.glob(os.path.join(glob.escape(os.path.dirname(fragment)), f"{unit.name}.d", "*.conf"))
        if not set(there) <= set(used):
            return True
        read = max(self.get(_PATH, _MANAGER, f"UnitsLoad{when}Timestamp") for when in ("Start", "")) / 1e6
        environment = self.get(unit.path, _SERVICE, "Environment")
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

        text = str(self.get(_PATH, _MANAGER, "Version"))
        found = re.match(r"[0-9]+", text)
        if not found:
            raise HostError(f"systemd tells no version: {text!r}")
        return int(found[0])

    def system_state(self) -> str:
        """Return what `systemctl is-system-running` says: running, degraded, stopping, …"""
        return str(self.get(_PATH, _MANAGER, "SystemState"))

    def not_off(self, *patterns: str) -> dict[str, UnitState]:
        """Return the units whose names match and that are anything but off, by name, in one call.

        Each unit in systemd's answer costs a tenth of a millisecond, and most may be off.
        """
        return self._list(_NOT_OFF, patterns)

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
        (value,) = self._call(_PROPERTIES, "Get", "(ss)", (interface, name), "(v)", path=path)
        return value

    def main_pid(self, state: UnitState) -> int | None:
        """Return the main process of a service in this state, or None when it has none."""
        return self.main_pids([state]).get(state.name)

    def main_pids(self, states: Iterable[UnitState]) -> dict[str, int]:
        """Return the main processes of those services that have one, by unit; all are asked at once."""
        alive = [state for state in states if state.active in _WITH_PROCESSES]
        values = self.get_all([state.path for state in alive], _SERVICE, "MainPID")
        return {state.name: int(pid) for state, pid in zip(alive, values, strict=True) if pid}

    def stop_plans(self, states: Iterable[UnitState]) -> Sequence[StopPlan]:
        """Return what bounds the stops of these services; a service's whole properties take systemd 13 ms."""
        objects = [state.path for state in states]
        timeouts = self.get_all(objects, _SERVICE, "TimeoutStopUSec")
        after = self.get_all(objects, _UNIT, "After")
        return [
            StopPlan(microseconds / 1e6, units) for microseconds, units in zip(timeouts, after, strict=True)
        ]

    def get_all(self, objects: Sequence[str], interface: str, name: str) -> Sequence[Any]:
        """Return one property of several objects, asked for all at once. Raises as `get` does."""
        from gi.repository import Gio, GLib

        if not objects:
            return []
        connection = self._connection()
        values: dict[str, Any] = {}

        def arrived(_connection: Any, result: Any, path: str) -> None:
            try:
                values[path] = connection.call_finish(result).unpack()[0]
            except GLib.Error as error:
                values[path] = self._error(error, name)

        arguments = GLib.Variant("(ss)", (interface, name))
        reply = GLib.VariantType.new("(v)")
        for path in objects:
            connection.call(
                *(_NAME, path, _PROPERTIES, "Get", arguments, reply, Gio.DBusCallFlags.NONE),
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
        for interface in (_UNIT, _SERVICE):
            (part,) = self._call(_PROPERTIES, "GetAll", "(s)", (interface,), "(a{sv})", path=path)
            values.update(part)
        return values

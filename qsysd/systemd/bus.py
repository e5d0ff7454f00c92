"""The bus: a connection that is made at the first call, and calls that outlive a restart of either side.

No proxy objects: introspecting one costs more than any call made here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from qsysd.errors import HostError, NotFoundError, QsysdError, TimeoutExpired

NAME = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
UNIT = "org.freedesktop.systemd1.Unit"
SERVICE = "org.freedesktop.systemd1.Service"
PROPERTIES = "org.freedesktop.DBus.Properties"

CALL_TIMEOUT = 30.0  # seconds; PID 1 was seen busy for 2 s in a daemon-reload with 1000 units
# Seconds in which systemd (daemon-reexec) or the bus (an upgrade of dbus) must be back.
PATIENCE = 15.0
RETRY_PAUSE = 0.05
# What the bus says where nobody owns the name, or its owner leaves before it has answered.
_ABSENT = (".ServiceUnknown", ".NameHasNoOwner", ".Disconnected", ".NoReply")
BOOTED = "/run/systemd/system"  # sd_booted(3)

_HINTS = {
    "org.freedesktop.DBus.Error.AccessDenied": "run it as root: sudo qsysd …",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": "run it as root: sudo qsysd …",
    "org.freedesktop.DBus.Error.NoReply": "systemd is busy or hangs: systemctl status",
}


class UnitRefused(QsysdError):
    """systemd does not take a job for this unit: it is masked or broken, or the host shuts down."""


class BusLost(HostError):
    """The bus or systemd went away: whether the call had an effect is not known."""


class Bus:
    """A connection to the system's or a private bus.

    patience: seconds in which a bus or a systemd that went away must be back; by default PATIENCE on a
    host that systemd booted.
    """

    def __init__(self, address: str | None = None, *, patience: float | None = None) -> None:
        self._address = address
        self._bus: Any = None
        self._patience = patience
        self._was_connected = False
        self._subscriptions: list[tuple[str, Callable[[Any], None]]] = []

    def connection(self) -> Any:
        """Return the connection of Gio, which is made if there is none. Raises HostError."""
        if self._bus is None:
            self._bus = self._connected()
            self._was_connected = True
            # A bus that restarts must not take this process with it.
            self._bus.con.set_exit_on_close(False)
            for signal, fired in self._subscriptions:
                self._listen(signal, fired)
        return self._bus.con

    def _connected(self) -> Any:
        try:
            from gi.repository import Gio, GLib

            if not self._address and not self._was_connected:
                # GLib's own threads connect while pydbus is imported, and SystemBus() joins them.
                Gio.bus_get(Gio.BusType.SYSTEM, None, lambda *_: None)
            import pydbus
        except ImportError as error:
            raise HostError(
                f"pydbus cannot be used: {error}", hint="apt install python3-pydbus python3-gi"
            ) from error
        try:
            if self._was_connected and not self._address:
                # GLib's own connection to the system bus is made once for each process.
                return pydbus.connect(Gio.dbus_address_get_for_bus_sync(Gio.BusType.SYSTEM, None))
            return pydbus.connect(self._address) if self._address else pydbus.SystemBus()
        except GLib.Error as error:
            kind = BusLost if self._was_connected else HostError
            raise kind(
                f"the system bus cannot be reached: {error.message}",
                hint="systemctl status dbus; qsysd needs a host that systemd booted",
            ) from error

    def is_closed(self) -> bool:
        """Return whether the connection was lost; the next call connects again."""
        if self._bus is not None and self._bus.con.is_closed():
            self._forget()
        return self._bus is None

    def _forget(self) -> None:
        """Make the next call connect, and subscribe, again."""
        self._bus = None

    def patiently(self, action: Callable[[], Any]) -> Any:
        """Return what `action` returns; while the bus or systemd is away, try it again. Raises BusLost."""
        patience = self._patience
        if patience is None:
            patience = PATIENCE if not self._address and os.path.isdir(BOOTED) else 0
        deadline = time.monotonic() + patience
        while True:
            try:
                return action()
            except BusLost:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(RETRY_PAUSE)

    def call(
        self,
        interface: str,
        method: str,
        signature: str,
        arguments: Sequence[Any],
        reply: str,
        *,
        path: str = PATH,
        timeout: float = CALL_TIMEOUT,
    ) -> Any:
        """Call a method; return its reply as a tuple.

        Raises BusLost when the bus or systemd is gone, NotFoundError for an unknown unit,
        TimeoutExpired, QsysdError with systemd's own words otherwise.
        """
        connection = self.connection()
        from gi.repository import Gio, GLib

        try:
            answer = connection.call_sync(
                NAME,
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
            raise self.error(error, method) from error
        return answer.unpack()

    def error(self, error: Any, method: str) -> QsysdError:
        """Return what a GLib.Error of a call means."""
        from gi.repository import Gio

        name = Gio.dbus_error_get_remote_error(error) or ""
        # Gio's own dbus_error_strip_remote_error() changes a copy only.
        said = error.message.removeprefix(f"GDBus.Error:{name}: ")
        words = f"systemd: {method}: {said}"
        if name.endswith((".NoSuchUnit", ".UnknownObject", ".NoSuchJob", ".LoadFailed")):
            return NotFoundError(words)
        if error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.TIMED_OUT):
            return TimeoutExpired(words, hint=_HINTS["org.freedesktop.DBus.Error.NoReply"])
        gone = (Gio.IOErrorEnum.CLOSED, Gio.IOErrorEnum.CONNECTION_CLOSED, Gio.IOErrorEnum.BROKEN_PIPE)
        if any(error.matches(Gio.io_error_quark(), code) for code in gone):
            self._forget()
            return BusLost(f"{words} (the bus is gone)", hint="systemctl status dbus")
        if name.endswith(_ABSENT) or "Spawn." in name:
            return BusLost(words, hint="qsysd needs a host that systemd booted")
        if name.startswith("org.freedesktop.systemd1."):
            return UnitRefused(said)
        return QsysdError(words, hint=_HINTS.get(name))

    def subscribe(self, signal: str, fired: Callable[[Any], None]) -> None:
        """Call `fired` with the values of a signal of systemd's manager, over all connections to come."""
        self.connection()
        self._subscriptions.append((signal, fired))
        self._listen(signal, fired)

    def _listen(self, signal: str, fired: Callable[[Any], None]) -> None:
        self._bus.subscribe(
            # Anybody may send signals on the system bus: those of systemd only.
            sender=NAME,
            iface=MANAGER,
            signal=signal,
            object=PATH,
            signal_fired=lambda _sender, _object, _iface, _signal, values: fired(values),
        )

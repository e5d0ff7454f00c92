"""The connection to the bus, which is renewed after a restart of the bus or of systemd.

No proxy objects are used: introspection takes longer than any call of this package.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from qsysd.errors import RUN_AS_ROOT, HostError, NotFoundError, QsysdError, TimeoutExpired

NAME = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
UNIT = "org.freedesktop.systemd1.Unit"
SERVICE = "org.freedesktop.systemd1.Service"
PROPERTIES = "org.freedesktop.DBus.Properties"

CALL_TIMEOUT = 30.0  # seconds; PID 1 was seen busy for 2 s in a daemon-reload with 1000 units
# Seconds within which systemd (daemon-reexec) or the bus (an upgrade of dbus) must be available again.
PATIENCE = 15.0
RETRY_PAUSE = 0.05
# The errors of the bus if the name has no owner, or if its owner disconnects before it has answered.
_ABSENT = (".ServiceUnknown", ".NameHasNoOwner", ".Disconnected", ".NoReply")
BOOTED = "/run/systemd/system"  # sd_booted(3)

_HINTS = {
    "org.freedesktop.DBus.Error.AccessDenied": RUN_AS_ROOT,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": RUN_AS_ROOT,
    "org.freedesktop.DBus.Error.NoReply": "systemd is busy or hangs: systemctl status",
}


class UnitRefused(QsysdError):
    """systemd accepts no job for this unit: it is masked or not valid, or the host shuts down."""


class BusLost(HostError):
    """The connection to the bus or to systemd was lost: whether the call had an effect is not known."""


def libraries() -> tuple[Any, Any]:
    """Return the modules Gio and GLib, which take 20 ms to import. Raise HostError without PyGObject."""
    try:
        from gi.repository import Gio, GLib
    except ImportError as error:
        raise _not_installed(error) from error
    return Gio, GLib


def _not_installed(error: ImportError) -> HostError:
    return HostError(f"pydbus cannot be used: {error}", hint="apt install python3-pydbus python3-gi")


class Bus:
    """A connection to the system bus or to a private bus.

    patience: seconds within which a bus or a systemd that was lost must be available again; by default
    PATIENCE on a host that systemd booted.
    """

    def __init__(self, address: str | None = None, *, patience: float | None = None) -> None:
        self._address = address
        self._bus: Any = None
        self._patience = patience
        self._was_connected = False
        self._subscriptions: list[tuple[str, Callable[[Any], None]]] = []

    def connection(self) -> Any:
        """Return Gio's connection; connect if necessary. Raise HostError."""
        if self._bus is None:
            self._bus = self._connected()
            self._was_connected = True
            # By default GLib ends the process when the bus restarts.
            self._bus.con.set_exit_on_close(False)
            for signal, fired in self._subscriptions:
                self._listen(signal, fired)
        return self._bus.con

    def _connected(self) -> Any:
        gio, glib = libraries()
        if not self._address and not self._was_connected:
            # GLib connects in a thread while pydbus is imported; SystemBus() returns this connection.
            gio.bus_get(gio.BusType.SYSTEM, None, lambda *_: None)
        try:
            import pydbus
        except ImportError as error:
            raise _not_installed(error) from error
        try:
            if self._was_connected and not self._address:
                # GLib connects to the system bus only once in each process.
                return pydbus.connect(gio.dbus_address_get_for_bus_sync(gio.BusType.SYSTEM, None))
            return pydbus.connect(self._address) if self._address else pydbus.SystemBus()
        except glib.Error as error:
            kind = BusLost if self._was_connected else HostError
            raise kind(
                f"the system bus cannot be reached: {error.message}",
                hint="systemctl status dbus; qsysd needs a host booted by systemd",
            ) from error

    def is_closed(self) -> bool:
        """Return whether the connection is closed; the next call connects again."""
        if self._bus is not None and self._bus.con.is_closed():
            self._forget()
        return self._bus is None

    def _forget(self) -> None:
        """Make the next call connect, and subscribe, again."""
        self._bus = None

    def patiently(self, action: Callable[[], Any]) -> Any:
        """Return the result of `action`, which is repeated while the bus is lost. Raise BusLost."""
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

        Raise BusLost if the bus or systemd is lost, NotFoundError for an unknown unit, TimeoutExpired, and
        QsysdError with systemd's message otherwise.
        """
        connection = self.connection()
        gio, glib = libraries()
        try:
            answer = connection.call_sync(
                NAME,
                path,
                interface,
                method,
                glib.Variant(signature, tuple(arguments)),
                glib.VariantType.new(reply),
                gio.DBusCallFlags.NONE,
                int(timeout * 1000),
                None,
            )
        except glib.Error as error:
            raise self._error(error, method) from error
        return answer.unpack()

    def get_all(self, wanted: Sequence[tuple[str, str, str]]) -> Sequence[Any]:
        """Return properties by path, interface and name, queried in parallel. Raise as `call` does."""
        connection = self.connection()
        gio, glib = libraries()
        values: dict[int, Any] = {}

        def arrived(_connection: Any, result: Any, number: int) -> None:
            try:
                values[number] = connection.call_finish(result).unpack()[0]
            except glib.Error as error:
                values[number] = self._error(error, wanted[number][2])

        reply = glib.VariantType.new("(v)")
        for number, (path, interface, name) in enumerate(wanted):
            arguments = glib.Variant("(ss)", (interface, name))
            connection.call(
                *(NAME, path, PROPERTIES, "Get", arguments, reply, gio.DBusCallFlags.NONE),
                *(int(CALL_TIMEOUT * 1000), None, arrived, number),
            )
        context = glib.MainContext.default()
        while len(values) < len(wanted):
            context.iteration(True)
        for value in values.values():
            if isinstance(value, QsysdError):
                raise value
        return [values[number] for number in range(len(wanted))]

    def _error(self, error: Any, method: str) -> QsysdError:
        """Return the QsysdError for the GLib.Error of a call."""
        gio, _ = libraries()
        name = gio.dbus_error_get_remote_error(error) or ""
        # Gio's dbus_error_strip_remote_error() changes only a copy.
        reason = error.message.removeprefix(f"GDBus.Error:{name}: ")
        message = f"systemd: {method}: {reason}"
        if name.endswith((".NoSuchUnit", ".UnknownObject", ".NoSuchJob", ".LoadFailed")):
            return NotFoundError(message)
        if error.matches(gio.io_error_quark(), gio.IOErrorEnum.TIMED_OUT):
            return TimeoutExpired(message, hint=_HINTS["org.freedesktop.DBus.Error.NoReply"])
        closed = (gio.IOErrorEnum.CLOSED, gio.IOErrorEnum.CONNECTION_CLOSED, gio.IOErrorEnum.BROKEN_PIPE)
        if any(error.matches(gio.io_error_quark(), code) for code in closed):
            self._forget()
            return BusLost(f"{message} (the connection to the bus was lost)", hint="systemctl status dbus")
        if name.endswith(_ABSENT) or "Spawn." in name:
            return BusLost(message, hint="qsysd needs a host booted by systemd")
        if name.startswith("org.freedesktop.systemd1."):
            return UnitRefused(reason)
        return QsysdError(message, hint=_HINTS.get(name))

    def subscribe(self, signal: str, fired: Callable[[Any], None]) -> None:
        """Call `fired` with the values of a signal of systemd's manager, on all connections from now on."""
        self.connection()
        self._subscriptions.append((signal, fired))
        self._listen(signal, fired)

    def _listen(self, signal: str, fired: Callable[[Any], None]) -> None:
        self._bus.subscribe(
            # Every user can send signals on the system bus: accept those of systemd only.
            sender=NAME,
            iface=MANAGER,
            signal=signal,
            object=PATH,
            signal_fired=lambda _sender, _object, _iface, _signal, values: fired(values),
        )

"""A private bus with a systemd on it that does what the name of a unit asks for.

    StartUnit("qemu-vm@failed.service")     the job ends as `failed`
    …@early…                                its JobRemoved comes before the reply
    …@never…                                the job does not end
    …@lost…                                 the job ends without a JobRemoved
    …@forged…                               somebody else on the bus says `done` first; it fails
    …@nosuch…, @denied…, @masked…           the call is refused with systemd's own error
    …@hangs…                                the call is never answered
    …@dies…                                 systemd leaves the bus when the job is enqueued
    …@stale…                                needs a daemon-reload until there was one

Any other unit's jobs end with the word between @ and the first dash, or as `done`.
Run as a program, it is that systemd: `python scripted_systemd.py ADDRESS`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
TEST = "org.qsysd.Test"
RESULTS = ("done", "failed", "canceled", "timeout", "dependency", "skipped")
ERRORS = {
    "nosuch": ("org.freedesktop.systemd1.NoSuchUnit", "Unit {} not found."),
    "denied": ("org.freedesktop.DBus.Error.AccessDenied", "Permission denied"),
    "polkit": (
        "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
        "Interactive authentication required.",
    ),
    "masked": ("org.freedesktop.systemd1.UnitMasked", "Unit {} is masked."),
}
# A variable that makes systemd refuse subscriptions, as for a connection that it knows by its name.
ALREADY_SUBSCRIBED = "SCRIPTED_ALREADY_SUBSCRIBED"
JOB_DELAY = 10  # milliseconds

BUS_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={path}</listen>
  <policy context="default">
    <allow send_destination="*"/> <allow receive_sender="*"/> <allow own="*"/>
  </policy>
</busconfig>
"""

INTERFACES = """\
<node>
  <interface name="org.freedesktop.systemd1.Manager">
    <method name="Subscribe"/>
    <method name="StartUnit"><arg type="s"/><arg type="s"/><arg type="o" direction="out"/></method>
    <method name="StopUnit"><arg type="s"/><arg type="s"/><arg type="o" direction="out"/></method>
    <method name="RestartUnit"><arg type="s"/><arg type="s"/><arg type="o" direction="out"/></method>
    <method name="ReloadUnit"><arg type="s"/><arg type="s"/><arg type="o" direction="out"/></method>
    <method name="GetJob"><arg type="u"/><arg type="o" direction="out"/></method>
    <method name="KillUnit"><arg type="s"/><arg type="s"/><arg type="i"/></method>
    <method name="ResetFailedUnit"><arg type="s"/></method>
    <method name="Reload"/>
    <method name="EnableUnitFiles">
      <arg type="as"/><arg type="b"/><arg type="b"/>
      <arg type="b" direction="out"/><arg type="a(sss)" direction="out"/>
    </method>
    <method name="DisableUnitFiles">
      <arg type="as"/><arg type="b"/><arg type="a(sss)" direction="out"/>
    </method>
    <method name="ListUnitsByPatterns">
      <arg type="as"/><arg type="as"/><arg type="a(ssssssouso)" direction="out"/>
    </method>
    <method name="LoadUnit"><arg type="s"/><arg type="o" direction="out"/></method>
    <signal name="JobRemoved"><arg type="u"/><arg type="o"/><arg type="s"/><arg type="s"/></signal>
    <property name="Version" type="s" access="read"/>
    <property name="SystemState" type="s" access="read"/>
  </interface>
  <interface name="org.freedesktop.systemd1.Unit">
    <property name="NeedDaemonReload" type="b" access="read"/>
    <property name="InvocationID" type="ay" access="read"/>
    <property name="After" type="as" access="read"/>
    <property name="FragmentPath" type="s" access="read"/>
    <property name="ActiveState" type="s" access="read"/>
    <property name="Job" type="(uo)" access="read"/>
  </interface>
  <interface name="org.freedesktop.systemd1.Service">
    <property name="MainPID" type="u" access="read"/>
    <property name="TimeoutStopUSec" type="t" access="read"/>
    <property name="Environment" type="as" access="read"/>
  </interface>
  <interface name="org.qsysd.Test">
    <method name="Load"><arg type="s"/></method>
    <method name="Calls"><arg type="as" direction="out"/></method>
  </interface>
</node>
"""


def instance(unit: str) -> str:
    """Return what stands between @ and .service."""
    return unit.partition("@")[2].removesuffix(".service")


def behaviour(unit: str) -> str:
    """Return the word that says what is to happen with a unit."""
    return instance(unit).partition("-")[0]


class ScriptedSystemd:
    """The object that other programs talk to."""

    def __init__(self, address: str) -> None:
        from gi.repository import Gio, GLib

        self.gio: Any = Gio
        self.glib: Any = GLib
        self.address = address
        self.loop = GLib.MainLoop()
        self.calls: list[str] = []
        self.loaded: list[str] = []
        self.stale = True
        self.jobs = 0
        self.under_way: set[int] = set()
        self.connection = self.connect()
        self.interfaces = {info.name: info for info in Gio.DBusNodeInfo.new_for_xml(INTERFACES).interfaces}
        for name in (MANAGER, TEST):
            self.register(PATH, name)
        self.register(f"{PATH}/unit/init_2escope", f"{NAME}.Unit")
        Gio.bus_own_name_on_connection(
            self.connection, NAME, Gio.BusNameOwnerFlags.NONE, lambda *_: print("ready", flush=True), None
        )

    def connect(self) -> Any:
        """Return a new connection to the bus."""
        flags = self.gio.DBusConnectionFlags
        return self.gio.DBusConnection.new_for_address_sync(
            self.address, flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None
        )

    def register(self, path: str, interface: str) -> None:
        """Offer an interface at a path."""
        self.connection.register_object(path, self.interfaces[interface], self.called, self.read, None)

    def path_of(self, unit: str) -> str:
        """Return a unit's object; it is made the first time, and the unit counts as loaded."""
        path = f"{PATH}/unit/{instance(unit).replace('-', '_2d')}"
        if unit not in self.loaded:
            self.loaded.append(unit)
            self.register(path, f"{NAME}.Unit")
            self.register(path, f"{NAME}.Service")
        return path

    def read(self, _connection: Any, _sender: str, path: str, _interface: str, name: str) -> Any:
        """Return a property."""
        text = path.rsplit("/", 1)[-1]
        values = {
            "Version": ("s", "252.39-1~deb12u1"),
            "SystemState": ("s", "running"),
            "NeedDaemonReload": ("b", text.startswith("stale") and self.stale),
            "FragmentPath": ("s", "/nonexistent/qemu-vm@.service"),
            "Environment": ("as", []),
            "ActiveState": ("s", "active"),
            "Job": ("(uo)", (0, "/")),
            "InvocationID": ("ay", b"\x01\xab"),
            "MainPID": ("u", 0 if text.startswith("off") else 4711),
            "TimeoutStopUSec": ("t", 2**64 - 1),
            "After": ("as", ["network.target"]),
        }
        return self.glib.Variant(*values[name])

    def called(
        self,
        _connection: Any,
        _sender: str,
        _path: str,
        _interface: str,
        method: str,
        arguments: Any,
        call: Any,
    ) -> None:
        """Answer a method call."""
        values = arguments.unpack()
        if method != "Calls":
            self.calls.append(" ".join([method, *map(str, values)]))
        unit = values[0] if values and isinstance(values[0], str) else ""
        if behaviour(unit) in ERRORS and method != "Load":
            name, words = ERRORS[behaviour(unit)]
            call.return_dbus_error(name, words.format(unit))
        elif behaviour(unit) == "hangs":
            return
        elif method == "Subscribe" and os.environ.get(ALREADY_SUBSCRIBED):
            call.return_dbus_error(f"{NAME}.AlreadySubscribed", "Client is already subscribed.")
        elif method == "GetJob" and values[0] not in self.under_way:
            call.return_dbus_error("org.freedesktop.systemd1.NoSuchJob", f"Job {values[0]} does not exist.")
        elif method in ("StartUnit", "StopUnit", "RestartUnit", "ReloadUnit"):
            self.job(unit, call)
        else:
            call.return_value(self.answer(method, values))

    def answer(self, method: str, values: tuple[Any, ...]) -> Any:
        """Return the reply to a call that no job follows from."""
        variant = self.glib.Variant
        if method == "Reload":
            self.stale = False
        if method == "Load":
            self.path_of(values[0])
        if method == "GetJob" and values[0] in self.under_way:
            return variant("(o)", (f"{PATH}/job/{values[0]}",))
        if method == "LoadUnit":
            return variant("(o)", (self.path_of(values[0]),))
        if method == "Calls":
            return variant("(as)", (self.calls,))
        if method == "EnableUnitFiles":
            return variant("(ba(sss))", (True, []))
        if method == "DisableUnitFiles":
            return variant("(a(sss))", ([],))
        if method == "ListUnitsByPatterns":
            return variant("(a(ssssssouso))", (self.rows(*values),))
        return None

    def rows(self, states: list[str], patterns: list[str]) -> list[tuple[Any, ...]]:
        """Return the loaded units that match, as ListUnitsByPatterns does."""
        import fnmatch

        return [
            (unit, "", "loaded", "active", "running", "", self.path_of(unit), 0, "", "/")
            for unit in self.loaded
            if any(fnmatch.fnmatchcase(unit, pattern) for pattern in patterns)
            and (not states or "active" in states)
        ]

    def job(self, unit: str, call: Any) -> None:
        """Enqueue a job and let it end as the unit's name asks for."""
        self.jobs += 1
        number, word = self.jobs, behaviour(unit)
        reply = self.glib.Variant("(o)", (f"{PATH}/job/{number}",))
        if word != "lost":
            self.under_way.add(number)
        if word == "early":
            self.removed(self.connection, number, unit, "done")
        if word == "forged":
            impostor = self.connect()
            self.removed(impostor, number, unit, "done")
            impostor.flush_sync(None)
        call.return_value(reply)
        if word == "dies":
            self.connection.flush_sync(None)
            os._exit(0)
        if word not in ("early", "never", "lost"):
            result = "failed" if word == "forged" else word if word in RESULTS else "done"
            self.glib.timeout_add(JOB_DELAY, lambda: self.removed(self.connection, number, unit, result))

    def removed(self, connection: Any, number: int, unit: str, result: str) -> bool:
        """Send JobRemoved; return False, for a timer that fires once."""
        self.under_way.discard(number)
        values = self.glib.Variant("(uoss)", (number, f"{PATH}/job/{number}", unit, result))
        connection.emit_signal(None, PATH, MANAGER, "JobRemoved", values)
        return False


class Bus:
    """A private bus and the scripted systemd on it; `calls` tells what was asked of that."""

    def __init__(self, directory: Path) -> None:
        config = directory / "bus.conf"
        config.write_text(BUS_CONFIG.format(path=directory / "bus"), encoding="utf-8")
        command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address=1"]
        with (directory / "bus.log").open("w", encoding="utf-8") as log:
            self.daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.daemon.stdout
        self.address = self.daemon.stdout.readline().strip()
        command = [sys.executable, __file__, self.address]
        self.systemd = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.systemd.stdout
        self.is_ready = self.systemd.stdout.readline() == "ready\n"

    def call(self, method: str, reply: str, *texts: str) -> Any:
        """Call one of the methods that are for tests only; return what it returns."""
        from gi.repository import Gio, GLib

        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        connection = Gio.DBusConnection.new_for_address_sync(self.address, flags, None, None)
        arguments = GLib.Variant(f"({'s' * len(texts)})", texts)
        answer = connection.call_sync(
            NAME,
            PATH,
            TEST,
            method,
            arguments,
            GLib.VariantType.new(reply),
            Gio.DBusCallFlags.NONE,
            20_000,
            None,
        )
        connection.close_sync(None)
        return answer.unpack()

    def load(self, unit: str) -> None:
        """Let systemd have a unit in memory."""
        self.call("Load", "()", unit)

    def calls(self) -> list[str]:
        """Return what was asked of systemd: method and arguments, in order."""
        (found,) = self.call("Calls", "(as)")
        return list(found)

    def close(self) -> None:
        """End both processes."""
        for process in (self.systemd, self.daemon):
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@contextlib.contextmanager
def private_bus(directory: Path) -> Iterator[Bus]:
    """Run a bus with the scripted systemd on it."""
    bus = Bus(directory)
    try:
        assert bus.is_ready
        yield bus
    finally:
        bus.close()


if __name__ == "__main__":
    ScriptedSystemd(sys.argv[1]).loop.run()

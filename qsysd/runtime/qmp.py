"""A small QMP client: enough for the steps of a unit, and for a query to many VMs at once.

    MonitorError
     ├─ MonitorGone      no QEMU answers at this socket: missing, refused, or closed
     ├─ MonitorBusy      connected, but no greeting: a socket serves one client at a time
     ├─ MonitorTimeout   no reply within the deadline
     └─ CommandRefused   QEMU replied with an error; `kind` and `description` hold it

It parses no JSON: each message of QEMU is one line (docs/interop/qmp-spec.rst in QEMU's sources), in
which the few values that are needed are found as text. `qemu.monitor` is the full client.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from qsysd.errors import QsysdError
from qsysd.runtime import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self

    from qsysd.paths import Scope

# Bytes; QEMU's replies are shorter, and guests cannot make them longer.
LINE_MAX = 16 * 1024 * 1024


class MonitorError(QsysdError):
    """The monitor could not be used."""


class MonitorGone(MonitorError):
    """Nothing listens at the socket, or QEMU closed the connection."""


class MonitorBusy(MonitorError):
    """No greeting within the deadline: another client holds the monitor, or QEMU hangs."""


class MonitorTimeout(MonitorError):
    """A reply did not come within the deadline."""


class CommandRefused(MonitorError):
    """QEMU replied with an error: `kind` is its class, `description` its text."""

    def __init__(self, command: str, error: Any) -> None:
        fields = error if isinstance(error, dict) else {}
        self.kind = _text(fields.get("class"))
        self.description = _text(fields.get("desc"))
        super().__init__(f"{command}: {self.description}")


def socket_path(scope: Scope, vm: str, socket: str) -> str:
    """Return the path of a VM's socket. Versions before 0.2 created it in another directory."""
    earlier = scope.earlier_socket(vm, socket)
    return earlier if os.path.lexists(earlier) else socket


def peer_pid(connection: _socket.socket) -> int:
    """Return the process that listens at the other end of a UNIX socket (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], sys.byteorder)


class Channel:
    """A connection to one monitor socket; a context manager. Subclasses send commands and read replies.

    The constructor connects and reads the greeting; a client also leaves the negotiation mode.

    path: the UNIX socket. timeout: seconds for connecting, and for each command without its own timeout.
    peer: the process that must listen there. QEMU can write to the directory of the socket, so root
    must make sure that it is connected to this VM's QEMU and not, through a link, to another's.
    directory: an open descriptor of the socket's directory, for a user who may not search those above it.
    No socket stays open after an error. Raise MonitorGone, MonitorBusy, MonitorTimeout.
    """

    def __init__(
        self, path: str, *, timeout: float = 5.0, peer: int | None = None, directory: int | None = None
    ) -> None:
        self.path = path
        self._address = path
        if directory is not None:
            self._address = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
        self.timeout = timeout
        self._buffer = b""
        self._last_id = 0
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            deadline = time.monotonic() + timeout
            self._connect(deadline, peer)
            self._negotiate(deadline)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, deadline: float, peer: int | None) -> None:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            self._socket.connect(self._address)
        except (TimeoutError, BlockingIOError) as error:  # EAGAIN: other clients wait already
            raise MonitorBusy(f"the monitor {self.path} is busy: another client holds it") from error
        except OSError as error:
            raise MonitorGone(f"no monitor at {self.path}: {error.strerror or error}") from error
        if peer is not None:
            self._require_peer(peer)

    def _require_peer(self, peer: int) -> None:
        if peer_pid(self._socket) != peer:
            raise MonitorGone(f"the monitor {self.path} is not that of process {peer}")

    def _negotiate(self, deadline: float) -> None:
        """Do what precedes the caller's first command."""
        self._read_greeting(deadline)

    def _greets(self, line: bytes) -> bool:
        return line.startswith(b'{"QMP":') and line.rstrip().endswith(b"}")

    def _read_greeting(self, deadline: float) -> None:
        try:
            greeting = self._read_line(deadline)
        except MonitorTimeout as error:
            raise MonitorBusy(
                f"the monitor {self.path} gave no greeting: another client holds it, or QEMU hangs"
            ) from error
        if not self._greets(greeting):
            raise self._no_qmp()

    def _no_qmp(self) -> MonitorGone:
        return MonitorGone(f"{self.path} is not a QMP socket")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the socket is available to the next client."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for select(2): readable after an event or the end of the connection."""
        return self._socket.fileno()

    def _no_answer(self, command: str) -> MonitorTimeout:
        return MonitorTimeout(f"{command}: no answer from QEMU in time")

    def _run_state(self, state: object) -> str:
        if not isinstance(state, str) or not state.replace("-", "").isalnum() or len(state) > 32:
            raise self._no_qmp()
        return state

    def _send(self, command: str, line: bytes, deadline: float) -> None:
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._socket.sendall(line)
        except TimeoutError as error:
            raise MonitorTimeout(f"{command}: QEMU does not read its monitor") from error
        except OSError as error:
            raise MonitorGone(f"{command}: QEMU closed the monitor") from error

    def _read_line(self, deadline: float) -> bytes:
        """Return the next message, without its end. Raise MonitorTimeout, MonitorGone."""
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:  # QEMU may send without end
                raise MonitorTimeout(f"no answer at {self.path} in time")
            try:
                self._socket.settimeout(left)
                chunk = self._socket.recv(65536)
            except TimeoutError as error:
                raise MonitorTimeout(f"no answer at {self.path} in time") from error
            except OSError as error:
                raise MonitorGone(f"QEMU closed the monitor {self.path}") from error
            if not chunk or len(self._buffer) > LINE_MAX:
                raise MonitorGone(f"QEMU closed the monitor {self.path}")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


class Client(Channel):
    """A connection for commands without arguments; events are ignored. path, timeout, peer: as above."""

    def _negotiate(self, deadline: float) -> None:
        super()._negotiate(deadline)
        self.execute("qmp_capabilities", timeout=max(0.001, deadline - time.monotonic()))

    def execute(self, command: str, *, timeout: float | None = None) -> bytes:
        """Run a command without arguments; return the line of its reply, without spaces.

        timeout: seconds. Raise CommandRefused, MonitorTimeout, MonitorGone.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self._last_id += 1
        self._send(command, _command(command, self._last_id), deadline)
        return self._answer(command, self._last_id, deadline)

    def _answer(self, command: str, number: int, deadline: float) -> bytes:
        """Return the reply to the command with this id, without spaces."""
        ends = (b'"id":%d}' % number, b'"id":%d,' % number)
        while True:
            try:
                line = self._read_line(deadline)
            except MonitorTimeout as error:
                raise self._no_answer(command) from error
            compact = line.replace(b" ", b"")
            if b'"event":' not in compact and (ends[0] in compact or ends[1] in compact):
                if b'"error":' in compact:
                    raise _refused(command, line)
                return compact

    def run_state(self) -> str:
        """Return the guest's run state: running, paused, io-error, … (RunState in qapi/run-state.json).

        Raise as `execute` does, and MonitorGone for any other reply.
        """
        return self._status(self.execute("query-status"))

    def _status(self, reply: bytes) -> str:
        status = reply.partition(b'"status":"')[2].partition(b'"')[0]
        return self._run_state(status.decode("ascii", "replace"))


class RunStateQuery(Client):
    """A query of the run state that is sent now and read later, so that many VMs work on it at once.

    path, timeout: as for a Client; the timeout is for the whole query. Raise as a Client does.
    """

    _COMMANDS = ("qmp_capabilities", "query-status")

    def __init__(self, path: str, *, timeout: float) -> None:
        super().__init__(path, timeout=timeout)

    def _negotiate(self, deadline: float) -> None:
        # QEMU reads one command after the other, so all can be sent at once.
        self._deadline = deadline
        lines = [_command(command, number) for number, command in enumerate(self._COMMANDS, 1)]
        self._send("query-status", b"".join(lines), deadline)

    def answer(self, *, peer: int) -> str:
        """Return the run state, as `run_state` does. peer: as for a Client."""
        self._require_peer(peer)
        self._read_greeting(self._deadline)
        reply = b""
        for number, command in enumerate(self._COMMANDS, 1):
            reply = self._answer(command, number, self._deadline)
        return self._status(reply)


def _command(command: str, number: int) -> bytes:
    """Return the line of a command without arguments. number: the id that its reply has."""
    return b'{"execute": "%s", "id": %d}\n' % (command.encode(), number)


def _refused(command: str, line: bytes) -> CommandRefused:
    """Return the error for a reply that holds one."""
    import json

    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    return CommandRefused(command, reply.get("error") if isinstance(reply, dict) else None)


def _text(value: Any) -> str:
    """Return text of QEMU, which may be compromised, without what a terminal would interpret."""
    return "".join(char if char.isprintable() else "?" for char in str(value))

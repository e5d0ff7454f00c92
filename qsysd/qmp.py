"""QMP, the door into a running QEMU (docs/interop/qmp-spec.rst in QEMU's sources).

    MonitorError
     ├─ MonitorGone      no QEMU answers at this socket: not there, refused, or closed on us
     ├─ MonitorBusy      connected, but no greeting came: a socket serves one client at a time
     ├─ MonitorTimeout   connected and greeted, but a reply did not come in time
     └─ CommandRefused   QEMU answered a command with an error; `kind` and `description` hold it

Each command carries an id and its reply is matched by it; events that arrive in between are kept in
`events`. Every read has a deadline. A connect that fails leaves no socket open.

The helper that a unit calls at each start and stop imports this, so it stays small.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

from qsysd.errors import QsysdError

# Read by type checkers only: importing typing takes long for a helper that runs at each start and stop.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

# A reply that is longer than this is not one of QEMU's; guests cannot make it longer either.
LINE_MAX = 16 * 1024 * 1024
# Of a QEMU that sends events without end, the last ones are kept.
EVENTS_MAX = 1000


class MonitorError(QsysdError):
    """The monitor could not be used."""


class MonitorGone(MonitorError):
    """Nothing listens at the socket, or QEMU closed the connection."""


class MonitorBusy(MonitorError):
    """No greeting within the deadline: another client holds the monitor, or QEMU hangs."""


class MonitorTimeout(MonitorError):
    """A reply did not come within the deadline."""


class CommandRefused(MonitorError):
    """QEMU answered with an error: `kind` is its class, `description` its words."""

    def __init__(self, command: str, kind: str, description: str) -> None:
        super().__init__(f"{command}: {description}")
        self.kind = kind
        self.description = description


def peer_pid(connection: socket.socket) -> int:
    """Return the process that listens at the other end of a UNIX socket (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], sys.byteorder)


class Monitor:
    """A connection to one monitor socket, as a context manager.

    Connects, reads the greeting and leaves the negotiation mode before the constructor returns.

    path: the UNIX socket. timeout: seconds for connecting, and for each command unless it names its own.
    peer: the process that must listen there. The socket lies in a directory of QEMU's own, so root
    has to make sure that it speaks with this VM's QEMU and not, through a link, with another's.
    Raises MonitorGone, MonitorBusy, MonitorTimeout.
    """

    def __init__(self, path: str, *, timeout: float = 5.0, peer: int | None = None) -> None:
        self.path = path
        self.timeout = timeout
        self.events: list[dict[str, Any]] = []
        self._buffer = b""
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
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
            self._socket.connect(self.path)
        except (TimeoutError, BlockingIOError) as error:  # EAGAIN: others wait for it already
            raise MonitorBusy(f"the monitor {self.path} is busy: another client holds it") from error
        except OSError as error:
            raise MonitorGone(f"no monitor at {self.path}: {error.strerror or error}") from error
        if peer is not None:
            self._require_peer(peer)

    def _require_peer(self, peer: int) -> None:
        if peer_pid(self._socket) != peer:
            raise MonitorGone(f"the monitor {self.path} is not that of process {peer}")

    def _negotiate(self, deadline: float) -> None:
        self._read_greeting(deadline)
        self.execute("qmp_capabilities", timeout=max(0.001, deadline - time.monotonic()))

    def _read_greeting(self, deadline: float) -> None:
        try:
            greeting = self._read(deadline)
        except MonitorTimeout as error:
            raise MonitorBusy(
                f"the monitor {self.path} gave no greeting: another client holds it, or QEMU hangs"
            ) from error
        if "QMP" not in greeting:
            raise MonitorGone(f"{self.path} does not speak QMP")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the socket is free for the next client."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for select(2): readable means an event or the end."""
        return self._socket.fileno()

    def execute(self, command: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Run a command and return the value of its reply.

        timeout: seconds. Raises CommandRefused, MonitorTimeout, MonitorGone.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        return self._reply(command, self._send(command, deadline, arguments), deadline)

    def _send(self, command: str, deadline: float, arguments: dict[str, Any] | None = None) -> int:
        """Send a command and return its id."""
        self._last_id += 1
        message: dict[str, Any] = {"execute": command, "id": self._last_id}
        if arguments:
            message["arguments"] = arguments
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError as error:
            raise MonitorTimeout(f"{command}: QEMU does not read its monitor") from error
        except OSError as error:
            raise MonitorGone(f"{command}: QEMU closed the monitor") from error
        return self._last_id

    def _reply(self, command: str, number: int, deadline: float) -> Any:
        """Return the value of the reply to the command with this id."""
        while True:
            try:
                reply = self._read(deadline)
            except MonitorTimeout as error:
                raise MonitorTimeout(f"{command}: no answer from QEMU in time") from error
            if reply.get("id") == number:
                if "error" in reply:
                    refusal = reply["error"] if isinstance(reply["error"], dict) else {}
                    raise CommandRefused(command, _text(refusal.get("class")), _text(refusal.get("desc")))
                return reply.get("return")

    def run_state(self) -> str:
        """Return the guest's run state: running, paused, io-error, … (RunState in qapi/run-state.json).

        Raises as `execute` does, and MonitorGone for what is none.
        """
        return self._run_state(self.execute("query-status"))

    def _run_state(self, reply: Any) -> str:
        state = reply.get("status") if isinstance(reply, dict) else None
        if not isinstance(state, str) or not state.replace("-", "").isalnum() or len(state) > 32:
            raise MonitorGone(f"{self.path} does not speak QMP")
        return state

    def wait_event(self, *names: str, timeout: float) -> dict[str, Any]:
        """Return the first event with one of these names, an already received one included.

        timeout: seconds. Raises MonitorTimeout, MonitorGone.
        """
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self.events):
                if event["event"] in names:
                    return self.events.pop(index)
            self._read(deadline)

    def _read(self, deadline: float) -> dict[str, Any]:
        """Return the next message; an event is put into `events` too. Raises MonitorTimeout, MonitorGone."""
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                raise MonitorTimeout(f"no answer at {self.path} in time")
            try:
                chunk = self._socket.recv(65536)
            except OSError as error:
                raise MonitorGone(f"QEMU closed the monitor {self.path}") from error
            if not chunk or len(self._buffer) > LINE_MAX:
                raise MonitorGone(f"QEMU closed the monitor {self.path}")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MonitorGone(f"{self.path} does not speak QMP") from error
        if not isinstance(message, dict):
            raise MonitorGone(f"{self.path} does not speak QMP")
        if "event" in message:
            self.events.append(message)
            del self.events[:-EVENTS_MAX]
        return message


class RunStateQuestion(Monitor):
    """A question for the guest's run state, put now and answered later: many VMs are asked at once.

    path, timeout: as for a Monitor; timeout counts for all of it. Raises as a Monitor does.
    """

    def __init__(self, path: str, *, timeout: float) -> None:
        super().__init__(path, timeout=timeout)

    def _negotiate(self, deadline: float) -> None:
        # QEMU reads one command after the other, so nothing has to be waited for in between.
        self._deadline = deadline
        self._numbers = [(name, self._send(name, deadline)) for name in ("qmp_capabilities", "query-status")]

    def answer(self, *, peer: int) -> str:
        """Return the run state, as `run_state` does. peer: as for a Monitor; nobody else is believed."""
        self._require_peer(peer)
        self._read_greeting(self._deadline)
        replies = [self._reply(name, number, self._deadline) for name, number in self._numbers]
        return self._run_state(replies[-1])


def _text(value: Any) -> str:
    """Return what QEMU says in a form that a terminal can show: a guest may have taken QEMU over."""
    return "".join(char if char.isprintable() else "?" for char in str(value))

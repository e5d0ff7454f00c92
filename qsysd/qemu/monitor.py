"""A QMP client for any command and for events (docs/interop/qmp-spec.rst in QEMU's sources).

Each command carries an id, by which its reply is found; events that arrive before the reply are kept in
`events`. Every read has a deadline. The errors are those of `qsysd.runtime.qmp`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from qsysd.qemu.options import Value
from qsysd.runtime.qmp import Channel, CommandRefused, MonitorTimeout

# A QEMU that sends events without end fills no memory: the last ones are kept.
EVENTS_MAX = 1000


class Monitor(Channel):
    """A connection to a monitor, as a context manager. path, timeout, peer: as for a Channel."""

    def __init__(self, path: str, *, timeout: float = 5.0, peer: int | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        super().__init__(path, timeout=timeout, peer=peer)

    def _negotiate(self, deadline: float) -> None:
        super()._negotiate(deadline)
        self.execute("qmp_capabilities", timeout=max(0.001, deadline - time.monotonic()))

    def _greets(self, line: bytes) -> bool:
        return "QMP" in self._message(line)

    def execute(
        self, command: str, arguments: Mapping[str, Value] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Run a command and return the value of its reply.

        arguments: as the command takes them, for example an option's values. timeout: seconds.
        Raise CommandRefused, MonitorTimeout, MonitorGone.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self._last_id += 1
        message: dict[str, Any] = {"execute": command, "id": self._last_id}
        if arguments:
            message["arguments"] = dict(arguments)
        self._send(command, json.dumps(message).encode() + b"\n", deadline)
        return self._reply(command, self._last_id, deadline)

    def _reply(self, command: str, number: int, deadline: float) -> Any:
        """Return the value of the reply to the command with this id."""
        while True:
            try:
                reply = self._read(deadline)
            except MonitorTimeout as error:
                raise self._no_answer(command) from error
            if reply.get("id") == number:
                if "error" in reply:
                    raise CommandRefused(command, reply["error"])
                return reply.get("return")

    def run_state(self) -> str:
        """Return the guest's run state: running, paused, io-error, … (RunState in qapi/run-state.json).

        Raise as `execute` does, and MonitorGone for a reply that holds no run state.
        """
        reply = self.execute("query-status")
        return self._run_state(reply.get("status") if isinstance(reply, dict) else None)

    def wait_event(self, *names: str, timeout: float) -> dict[str, Any]:
        """Return the first event with one of these names, which may have been received before the call.

        timeout: seconds. Raise MonitorTimeout, MonitorGone.
        """
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self.events):
                if event["event"] in names:
                    return self.events.pop(index)
            self._read(deadline)

    def _read(self, deadline: float) -> dict[str, Any]:
        """Return the next message; an event is added to `events`. Raise MonitorTimeout, MonitorGone."""
        message = self._message(self._read_line(deadline))
        if "event" in message:
            self.events.append(message)
            del self.events[:-EVENTS_MAX]
        return message

    def _message(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._no_qmp() from error
        if not isinstance(message, dict):
            raise self._no_qmp()
        return message

"""The other side of a monitor socket: a script in a thread that says what a test wants QEMU to say."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": ["oob"]}}
DEADLINE = 20.0  # seconds; a test that waits longer than this is stuck

Answer = Any
Script = Callable[["Connection"], None]


class Refuse(Exception):
    """Raised by an answer: QEMU refuses the command with these words."""

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        super().__init__(description)
        self.kind = kind


class Connection:
    """One client at the peer's socket."""

    def __init__(self, peer: Peer, connected: socket.socket) -> None:
        self.peer = peer
        self.socket = connected
        self._lines = connected.makefile("rb")

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def send(self, message: object) -> None:
        """Send a message as QEMU does, in one line."""
        self.send_bytes(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: object) -> None:
        """Send an event."""
        self.send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}})

    def receive(self) -> dict[str, Any] | None:
        """Return the client's next command, or None when it has gone; the peer notes its name."""
        line = self._lines.readline()
        if not line:
            return None
        command: dict[str, Any] = json.loads(line)
        self.peer.commands.append(command["execute"])
        return command

    def greet(self) -> None:
        """Send the greeting and let the client leave the negotiation mode."""
        self.send(GREETING)
        self.answer_one({"qmp_capabilities": {}})

    def answer_one(self, answers: Mapping[str, Answer]) -> bool:
        """Answer the next command; return False when the client has gone.

        An answer is a value, or a function that returns it or raises Refuse; a command without one
        gets CommandNotFound.
        """
        command = self.receive()
        if command is None:
            return False
        name = command["execute"]
        try:
            if name not in answers:
                raise Refuse(f"The command {name} has not been found", "CommandNotFound")
            answer = answers[name]
            value = answer() if callable(answer) else answer
        except Refuse as refusal:
            self.send({"error": {"class": refusal.kind, "desc": str(refusal)}, "id": command["id"]})
        else:
            self.send({"return": value, "id": command["id"]})
        return True

    def serve(self, answers: Mapping[str, Answer]) -> None:
        """Greet, and answer until the client goes."""
        self.greet()
        while self.answer_one(answers):
            pass


class Peer:
    """A monitor socket that serves one client at a time, as QEMU does, by running the script for each.

    commands: what all clients have sent. A script that fails makes the test fail when the peer ends.
    """

    def __init__(self, path: str, script: Script) -> None:
        self.path = path
        self.script = script
        self.commands: list[str] = []
        self.clients = 0
        self._failure: BaseException | None = None
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, name=f"peer {path}", daemon=True)

    def _run(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            self.clients += 1
            connected.settimeout(DEADLINE)
            with connected, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                try:
                    self.script(Connection(self, connected))
                except (BrokenPipeError, ConnectionResetError):
                    raise
                except BaseException as error:
                    self._failure = error
                    return

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # close() alone would not wake the thread in its accept()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)
        if kind is None:
            assert not self._thread.is_alive(), "the peer's script does not end"
            if self._failure:
                raise self._failure

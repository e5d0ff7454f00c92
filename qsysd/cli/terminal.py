"""The connection of a terminal to the socket of a serial console."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty

import click

from qsysd.errors import QsysdError
from qsysd.runtime.qmp import peer_pid

LEAVE = b"\x1d"  # Ctrl-]


def talk(path: str, name: str, *, peer: int) -> None:
    """Connect standard input and output to the socket until Ctrl-], the end of input, or the exit of QEMU.

    peer: the process id of QEMU, which must be the process that listens. Raise QsysdError if the connection
    fails.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        raise QsysdError(
            f"{name}: cannot connect to the console {path}: {error.strerror}", hint=f"qsysd status {name}"
        ) from error
    with connection:
        if peer_pid(connection) != peer:
            raise QsysdError(f"{name}: the console {path} does not belong to QEMU, process {peer}")
        terminal = sys.stdin.isatty()
        if terminal:
            message = f"connected to the console of {name}: Enter shows a prompt, Ctrl-] disconnects"
            click.echo(f"{message}; one client at a time", err=True)
        before = termios.tcgetattr(sys.stdin) if terminal else None
        try:
            if terminal:
                tty.setraw(sys.stdin)
            _copy(connection)
        finally:
            if before is not None:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
                click.echo(err=True)


def _copy(connection: socket.socket) -> None:
    sources: list[int] = [sys.stdin.fileno(), connection.fileno()]
    while True:
        readable, _, _ = select.select(sources, [], [])
        if connection.fileno() in readable:
            data = connection.recv(65536)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if sys.stdin.fileno() in readable:
            typed = os.read(sys.stdin.fileno(), 4096)
            if not typed or LEAVE in typed:
                return
            connection.sendall(typed)

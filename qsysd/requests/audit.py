"""The journal entry of each operation that changes this host: what, on which VM, by whom, result, duration.

    journalctl -t qsysd
    journalctl -t qsysd -o json QSYSD_VM=web1

Sent over journald's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from qsysd.errors import QsysdError
from qsysd.requests.request import Request
from qsysd.values import printable

IDENTIFIER = "qsysd"
# syslog(3)
WARNING, INFO = "4", "6"

# journald drops an entry with more than 1024 fields.
NAMES_MAX = 500
NAMES_IN_MESSAGE = 10
NAME_LENGTH = 256
ERROR_LENGTH = 400

DONE = "done"
INTERRUPTED = "interrupted"

# not all of YAML: enough to find the name in the definition of a VM that was not created
_YAML_NAME = re.compile(r"^name:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)

Fields = list[tuple[str, str]]


@dataclass(frozen=True)
class Caller:
    """The user of a command. uid: of the process; sudo_user: the user that ran sudo, "" without it."""

    uid: int
    sudo_user: str

    def __str__(self) -> str:
        return f"uid {self.uid}, sudo user {self.sudo_user}" if self.sudo_user else f"uid {self.uid}"


def caller() -> Caller:
    """Return the user of this process."""
    return Caller(os.getuid(), os.environ.get("SUDO_USER", ""))


def record(socket_path: str, request: Request, who: Caller, ended: object, seconds: float) -> None:
    """Send the entry of an operation that has ended. Never raises and never blocks.

    ended: what the operation returned, or the exception that it raised.
    """
    # A bug in here must not hide the operation's own result.
    with suppress(Exception):
        send(socket_path, fields(request, who, ended, seconds))


def fields(request: Request, who: Caller, ended: object, seconds: float) -> Fields:
    """Return the fields of an entry."""
    names = [name[:NAME_LENGTH] for name in _names(request.arguments, ended)]
    error = ended if isinstance(ended, BaseException) else next(iter(_failures(ended)), None)
    kind = _kind(error)
    noun = request.operation.partition(".")[0]
    return [
        ("MESSAGE", _message(request, who, names, kind, error, seconds)),
        ("PRIORITY", WARNING if error else INFO),
        ("SYSLOG_IDENTIFIER", IDENTIFIER),
        ("QSYSD_REQUEST", request.id),
        ("QSYSD_OPERATION", request.operation),
        *((f"QSYSD_{noun.upper()}", name) for name in names[:NAMES_MAX]),
        ("QSYSD_RESULT", kind),
        ("QSYSD_SECONDS", f"{seconds:.3f}"),
        ("QSYSD_UID", str(who.uid)),
        *([("QSYSD_SUDO_USER", who.sudo_user)] if who.sudo_user else []),
    ]


def _message(
    request: Request, who: Caller, names: list[str], kind: str, error: BaseException | None, seconds: float
) -> str:
    more = f" and {len(names) - NAMES_IN_MESSAGE} more" if len(names) > NAMES_IN_MESSAGE else ""
    subject = " ".join([request.operation, *names[:NAMES_IN_MESSAGE]]) + more
    why = " ".join(str(error or "").split())[:ERROR_LENGTH]
    result = f"{kind}: {why}" if why else kind
    return printable(f"{subject}: {result} ({seconds:.3f} s, {who}, request {request.id})")


def _names(arguments: Mapping[str, object], result: object) -> list[str]:
    """Return the names that an operation was for; without any in its arguments, those of its result."""
    names, definition = arguments.get("names"), arguments.get("definition")
    if isinstance(names, Iterable):
        return [str(each) for each in names]
    name = definition.get("name") if isinstance(definition, Mapping) else arguments.get("name")
    if isinstance(definition, str) and (found_name := _YAML_NAME.search(definition)):
        name = found_name[1]
    if isinstance(name, str):
        return [name]
    results = result if isinstance(result, list) else [result]
    found = [getattr(each, "name", None) for each in results]
    return [name for name in found if isinstance(name, str)]


def _failures(result: object) -> list[QsysdError]:
    """Return the errors of single VMs: of a list of outcomes, or in `failed` by VM."""
    if isinstance(result, list):
        found = [getattr(each, "error", None) for each in result]
    else:
        failed = getattr(result, "failed", None)
        found = list(failed.values()) if isinstance(failed, dict) else []
    return [error for error in found if isinstance(error, QsysdError)]


def _kind(error: BaseException | None) -> str:
    """Return the result in a word: `done`, `interrupted`, or the kind of an error."""
    if error is None:
        return DONE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return str(error.to_dict()["kind"]) if isinstance(error, QsysdError) else type(error).__name__


def encode(entry: Fields) -> bytes:
    """Return an entry as a datagram. A value follows its length, so that none can begin another field."""
    return b"".join(
        key.encode("ascii") + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        for key, value in entry
        for data in [value.encode("utf-8", "backslashreplace")]
    )


def send(path: str, entry: Fields) -> None:
    """Send an entry to journald; drop it where journald does not exist or cannot take it now."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.setblocking(False)
        connection.sendto(encode(entry), path)

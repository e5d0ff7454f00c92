"""The reason for a failed start, from the journal (journalctl(1))."""

from __future__ import annotations

import json

from qsysd import values
from qsysd.host.context import Host
from qsysd.runtime import spawn

_TIMEOUT = 20.0


def failure(host: Host, unit: str) -> str:
    """Return the messages of the last start of a unit: those of QEMU, otherwise those of the failed step.

    Return "" if the journal contains none.
    """
    properties = host.systemd.properties(unit)
    if properties.get("Result") == "start-limit-hit":
        return "it crashed too often (crash loop), so systemd does not restart it"
    if not properties.get("AssertResult", True):
        return "its environment file is missing; qsysd render writes it"
    invocation = bytes(properties.get("InvocationID", b"")).hex()
    if not invocation:
        return ""
    # Without --sync, lines that journald has not written yet are missing.
    spawn.run(["journalctl", "--sync"], check=False, timeout=_TIMEOUT)
    lines = _messages(invocation)
    qemu = [text for _, text in lines if text.startswith("qemu-system-") and "warning:" not in text]
    # A failed step is followed by the cleanup, which may report the same error again.
    chosen = qemu or [text for pid, text in lines if pid == lines[0][0]]
    return "\n".join(map(values.printable, chosen[-3:]))


def _messages(invocation: str) -> list[tuple[str, str]]:
    """Return the last lines that a unit's processes wrote in one invocation, each with the PID."""
    arguments = ["-q", "-o", "json", "--output-fields=MESSAGE,_PID", "-n", "50", "--no-pager"]
    done = spawn.run(
        ["journalctl", *arguments, f"_SYSTEMD_INVOCATION_ID={invocation}"], check=False, timeout=_TIMEOUT
    )
    found = []
    for entry in map(json.loads, done.stdout.splitlines()):
        message = entry.get("MESSAGE") or ""
        if isinstance(message, list):  # not UTF-8
            message = bytes(message).decode("utf-8", "replace")
        found += [(entry.get("_PID", ""), line.strip()) for line in message.splitlines() if line.strip()]
    return found

"""The machine types of this host's QEMU, cached until the program changes or the host boots."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from typing import Any

from qsysd.errors import HostError, QsysdError
from qsysd.files import read_text, write_atomic
from qsysd.paths import Scope
from qsysd.runtime import spawn

PROGRAM = "qemu-system-x86_64"


def pinned_machine(scope: Scope, alias: str) -> str:
    """Return the versioned machine type that an alias stands for: `pc-q35-7.2` for `q35`.

    The definition records it, so that the guest sees the same machine after an upgrade of QEMU.
    Raise HostError without QEMU, and for an alias that it does not have.
    """
    machines = _machines(scope)
    if alias not in machines:
        raise HostError(f"this host's QEMU has no machine type {alias!r}", hint=f"{PROGRAM} -machine help")
    return machines[alias]


def _machines(scope: Scope) -> dict[str, str]:
    """Return the versioned machine type of each name; a name that is not an alias stands for itself."""
    program = spawn.require(PROGRAM)
    status = os.stat(program)
    identity = [program, status.st_mtime_ns, status.st_size]
    cache = os.path.join(scope.runtime_dir, "machines.json")
    known = _cached(cache)
    if known.get("identity") == identity and isinstance(machines := known.get("machines"), dict):
        return {str(name): str(target) for name, target in machines.items()}
    output = spawn.run([PROGRAM, "-machine", "help"], timeout=30).stdout
    # "q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)"
    lines = re.findall(r"^(\S+) .*?(?:\(alias of (\S+)\))?$", output, re.MULTILINE)
    machines = {name: target or name for name, target in lines}
    with suppress(OSError, QsysdError):  # without the cache, the next call runs QEMU again
        os.makedirs(scope.runtime_dir, mode=0o755, exist_ok=True)
        write_atomic(cache, json.dumps({"identity": identity, "machines": machines}), 0o644)
    return machines


def _cached(cache: str) -> dict[str, Any]:
    """Return the contents of the cache; empty if it cannot be read, or is not a mapping."""
    try:
        known = json.loads(read_text(cache) or "{}")
    except (QsysdError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}

"""The error of a VM that did not start."""

from __future__ import annotations

import os
import re

from qsysd import paths
from qsysd.errors import HostError, QsysdError, StateError, TimeoutExpired
from qsysd.host import journal
from qsysd.host.context import Host
from qsysd.qemu import machine_types
from qsysd.runtime import spawn
from qsysd.systemd import JobResult


def error(host: Host, name: str, result: JobResult, timeout: float) -> QsysdError:
    """Return the error of a VM whose start job did not end as `done`. timeout: the job's, in seconds."""
    hint = f"qsysd logs {name}"
    if result.result == "canceled":
        return StateError(f"{name}: the start was canceled by another command")
    if result.result == "waiting":
        return TimeoutExpired(f"{name}: not started within {timeout:.0f} s", hint=hint)
    if result.result == "not-found":
        return HostError(f"{name}: systemd has no unit {result.unit}", hint="qsysd setup")
    if result.refusal:
        return QsysdError(f"{name}: {result.refusal}", hint=f"systemctl status {result.unit}")
    if result.result == "dependency":
        return QsysdError(f"{name} did not start: a unit that it depends on failed", hint=hint)
    try:
        # systemd does not report a missing program in the journal of the unit.
        spawn.require(machine_types.PROGRAM)
    except HostError as missing:
        return HostError(f"{name} did not start: {missing.message}", hint=missing.hint)
    message = journal.failure(host, paths.unit(name)) or f"result of the job: {result.result}"
    if hidden := _hidden_files(host, name):
        message += f" (QEMU can open {', '.join(hidden)} only with BindReadOnlyPaths= in a drop-in)"
    return QsysdError(f"{name} did not start: {message}", hint=hint)


def _hidden_files(host: Host, name: str) -> list[str]:
    """Return the files named by a VM's qemu_args that are not in QEMU's root without a drop-in."""
    try:
        arguments = host.store.load(name).qemu_args
    except QsysdError:
        return []
    named = dict.fromkeys(path for argument in arguments for path in re.findall(r"/[^,]*", argument))
    visible = ("/usr/", f"{host.scope.vm_dir(name)}/", f"{host.scope.images_dir}/")
    return [path for path in named if os.path.isfile(path) and not path.startswith(visible)]

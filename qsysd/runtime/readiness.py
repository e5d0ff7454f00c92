"""The verb ready: a start is successful only when QEMU answers QMP."""

from __future__ import annotations

import time

from qsysd.errors import QsysdError, TimeoutExpired
from qsysd.paths import Scope
from qsysd.runtime.monitors import Monitors
from qsysd.runtime.privileges import drop_privileges
from qsysd.runtime.qmp import MonitorError, MonitorGone
from qsysd.runtime.unit import main_process

TIMEOUT = 60.0  # seconds; a host under load is slow
POLL_INTERVAL = 0.002  # seconds between two attempts to connect


def ready(scope: Scope, vm: str) -> bool:
    """Return True when QEMU answers QMP, False when it exits: its own error is in the journal then.

    Raise QsysdError when QEMU does not answer, TimeoutExpired when it creates no monitor.
    """
    qemu = main_process()
    if qemu is None:
        return False
    monitors = Monitors(scope, vm)
    drop_privileges(scope, vm, permanently=True)
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if qemu.has_exited(POLL_INTERVAL):
            return False
        try:
            # A separate thread of QEMU sends the greeting; a reply shows that the main loop runs.
            with monitors.connect("ready", max(0.1, deadline - time.monotonic())) as monitor:
                monitor.execute("query-status")
            return True
        except MonitorGone:
            continue  # QEMU has not created the socket yet, or does not listen yet
        except MonitorError as error:
            raise QsysdError(f"QEMU does not answer: {error}") from error
    raise TimeoutExpired(f"QEMU created no monitor socket within {TIMEOUT:.0f} s")

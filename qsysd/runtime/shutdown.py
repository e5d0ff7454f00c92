"""The verb stop: power button, repeated; at the VM's timeout QMP `quit`; then clean up."""

from __future__ import annotations

import os
import time

from qsysd.paths import Scope
from qsysd.runtime import TYPE_CHECKING
from qsysd.runtime.unit import Process, log, main_process, variable

if TYPE_CHECKING:
    from qsysd.runtime.monitors import Monitors
    from qsysd.runtime.qmp import Client

PRESS_INTERVAL = 2.0  # seconds between two presses of the power button
QUIT_TIMEOUT = 10.0  # seconds for QEMU to flush its disks and exit


def stop(scope: Scope, vm: str) -> None:
    """Power the guest off, and do what after-stop does once QEMU has exited.

    systemd also runs this after QEMU exited without a stop; MAINPID is not set then.
    """
    qemu = main_process()
    if qemu is not None and not qemu.has_exited():
        from qsysd.runtime.monitors import Monitors
        from qsysd.runtime.privileges import drop_privileges, restore_privileges

        monitors = Monitors(scope, vm)
        drop_privileges(scope, vm)
        try:
            exited = power_off(monitors, qemu)
        finally:
            restore_privileges()
        if not exited:
            log("QEMU did not exit; systemd terminates it")
            return
    if os.path.exists(scope.shutdown_mark):
        return  # cleanup has nothing to do at host shutdown, and 20 VMs need not load it
    from qsysd.runtime.cleanup import after_stop

    after_stop(scope, vm)


def power_off(monitors: Monitors, qemu: Process) -> bool:
    """Power the guest off, at the timeout make QEMU quit; return whether QEMU has exited."""
    from qsysd.runtime.qmp import MonitorError

    timeout = int(variable("QSYSD_STOP_TIMEOUT", "0123456789", range(1, 7)))
    deadline = time.monotonic() + timeout
    monitor: Client | None = None
    while not qemu.has_exited() and time.monotonic() < deadline:
        monitor = monitor or monitors.connect_any()
        try:
            if monitor:
                press_power_button(monitor)
        except MonitorError as error:
            log(f"{error}")
            monitor = None
        # A press is lost while the guest boots: repeat it until the guest is off.
        if qemu.has_exited(min(PRESS_INTERVAL, max(0.0, deadline - time.monotonic()))):
            return True
    if qemu.has_exited():
        return True
    log(f"the guest did not power off within {timeout} s; sending quit to QEMU")
    monitor = monitor or monitors.connect_any()
    if monitor:
        try:
            monitor.execute("quit")
        except MonitorError as error:
            log(f"{error}")
    return qemu.has_exited(QUIT_TIMEOUT if monitor else 0)


def press_power_button(monitor: Client) -> None:
    """Press the power button. A paused or sleeping guest is woken first: its CPUs must run to handle it."""
    status = monitor.run_state()
    if status in ("paused", "io-error", "prelaunch"):
        monitor.execute("cont")
    elif status == "suspended":
        monitor.execute("system_wakeup")
    monitor.execute("system_powerdown")

"""The SSH server of a guest: its address, and waiting until it answers."""

from __future__ import annotations

import socket
import time

from qsysd import network, paths
from qsysd.errors import NotFoundError, QsysdError, TimeoutExpired
from qsysd.host import console_log, unit_states
from qsysd.host.context import Host
from qsysd.host.guest_states import guest_state

SSH_PORT = 22
PROBE_TIMEOUT = 2.0  # seconds for one attempt at the guest's SSH port
PROBE_PAUSE = 0.25
UPDATE_INTERVAL = 1.0
WAIT_TIMEOUT = 300.0


def address(host: Host, name: str) -> str:
    """Return a VM's first address. Raise NotFoundError for a VM without one."""
    host.store.require(name)
    found = host.store.summary(name).addresses
    if not found:
        raise NotFoundError(
            f"{name} has no address: none of its NICs is on a network with addresses",
            hint=f"qsysd console {name}",
        )
    return found[0]


def wait(host: Host, name: str, timeout: float) -> float:
    """Wait until the SSH server of the guest answers; return the seconds that it took. timeout: seconds.

    Raise TimeoutExpired with the last progress of the boot, StateError if the VM is switched off.
    """
    where = address(host, name)
    started = time.monotonic()
    next_update = UPDATE_INTERVAL
    try:
        while not _answers(where):
            waited = time.monotonic() - started
            unit_states.require_running(host, name)
            if waited > timeout:
                raise TimeoutExpired(
                    f"{name}: no answer on SSH at {where} within {timeout:.0f} s: "
                    f"{_boot_progress(host, name, where)}; the VM is kept",
                    hint=f"qsysd ssh {name} continues waiting; qsysd logs {name} --console shows the boot",
                )
            if waited >= next_update:
                state, line = _boot_progress(host, name, where), _last_console_line(host, name)
                host.progress.waiting(f"{name}: waiting for SSH", waited, state, line)
                next_update = waited + UPDATE_INTERVAL
            time.sleep(PROBE_PAUSE)
        host.store.record_ssh_answer(name)
        return time.monotonic() - started
    finally:
        host.progress.waiting("")


def wait_once(host: Host, name: str) -> None:
    """Wait as `wait` does, unless the guest has answered since the VM was started.

    From OpenSSH 9.8, a server refuses a client that often connects without a login (PerSourcePenalties in
    sshd_config(5)): an attempt before each ssh would lock a loop of them out.
    """
    started = host.store.started(name)
    if not (started and started.ssh_answered):
        wait(host, name, WAIT_TIMEOUT)


def _last_console_line(host: Host, name: str) -> str:
    """Return the last line of the guest's console that is not blank, "" if it cannot be read."""
    try:
        lines = console_log.console_tail(host, name, 10)
    except QsysdError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _answers(where: str) -> bool:
    """Return whether an SSH server answers at the address."""
    try:
        with socket.create_connection((where, SSH_PORT), timeout=PROBE_TIMEOUT) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _boot_progress(host: Host, name: str, where: str) -> str:
    """Return the progress of the guest's boot, as text."""
    pid = host.systemd.main_pid(host.systemd.state(paths.unit(name)))
    state = guest_state(host, name, pid, 1.0) if pid else "off"
    if state != "running":
        return f"the guest is {state}"
    for net in host.store.network_names():
        if any(lease.address == where for lease in network.leases(host.scope, net)):
            return "the guest has its address"
    return "the guest boots and has not requested its address"

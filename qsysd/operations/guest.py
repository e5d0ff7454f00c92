"""Access to a guest: its address, SSH, the serial console, and waiting until SSH answers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

from qsysd import network, paths
from qsysd.errors import NotFoundError, QsysdError, StateError, TimeoutExpired
from qsysd.host import console_log
from qsysd.host.context import Host
from qsysd.host.guest_states import guest_state
from qsysd.host.unit_states import OFF, describe
from qsysd.model.vm import VMSpec

SSH_PORT = 22
PROBE_TIMEOUT = 2.0  # seconds for one attempt at the guest's SSH port
PROBE_PAUSE = 0.25
UPDATE_INTERVAL = 1.0
# For ssh(1) itself, also of a guest that reboots: seconds of an attempt, attempts with a second in between.
CONNECT_TIMEOUT = 15
CONNECT_ATTEMPTS = 20
WAIT_TIMEOUT = 300.0


def addresses(host: Host, name: str) -> list[str]:
    """Return the addresses that a VM's networks give it. Raises NotFoundError."""
    host.store.require(name)
    return list(host.store.summary(name).addresses)


def address(host: Host, name: str) -> str:
    """Return a VM's first address. Raises NotFoundError for a VM without one."""
    found = addresses(host, name)
    if not found:
        raise NotFoundError(
            f"{name} has no address: none of its NICs is on a network with addresses",
            hint=f"qsysd console {name}",
        )
    return found[0]


def require_running(host: Host, name: str) -> int:
    """Return the process of a running VM's QEMU.

    Raises StateError for a VM that does not run, and NotFoundError for one that does not exist.
    """
    host.store.require(name)
    state = host.systemd.state(paths.unit(name))
    if state.active != "active":
        raise StateError(
            f"{name} is not running: it is {describe(state)}",
            hint=f"qsysd start {name}" if state.active in OFF else f"qsysd status {name}",
        )
    pid = host.systemd.main_pid(state)
    if pid is None:
        raise StateError(f"{name} is stopping", hint=f"qsysd status {name}")
    return pid


def wait_before_ssh(host: Host, name: str) -> None:
    """Wait as `wait` does, unless the guest has answered since the VM was started.

    From OpenSSH 9.8, a server refuses a client that often connects without a login (PerSourcePenalties in
    sshd_config(5)): an attempt before each ssh would lock a loop of them out.
    """
    started = host.store.started(name)
    if not (started and started.ssh_answered):
        wait(host, name)


def wait(host: Host, name: str, *, timeout: float = WAIT_TIMEOUT) -> float:
    """Return, with the seconds it took, when the guest's SSH server answers. timeout: seconds.

    Raises TimeoutExpired with what was seen last, and StateError when the VM goes off meanwhile.
    """
    where = address(host, name)
    started = time.monotonic()
    next_update = UPDATE_INTERVAL
    try:
        while not _answers(where):
            waited = time.monotonic() - started
            require_running(host, name)
            if waited > timeout:
                raise TimeoutExpired(
                    f"{name}: no answer on SSH at {where} within {timeout:.0f} s: "
                    f"{_seen(host, name, where)}; the VM is kept",
                    hint=f"qsysd ssh {name} continues waiting; qsysd logs {name} --console shows the boot",
                )
            if waited >= next_update:
                what, console = f"{name}: waiting for SSH", _last_console_line(host, name)
                host.progress.waiting(what, waited, _seen(host, name, where), console)
                next_update = waited + UPDATE_INTERVAL
            time.sleep(PROBE_PAUSE)
        host.store.record_ssh_answer(name)
        return time.monotonic() - started
    finally:
        host.progress.waiting("")


def _last_console_line(host: Host, name: str) -> str:
    """Return the last line on the guest's console that is not blank, "" where it cannot be read."""
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


def _seen(host: Host, name: str, where: str) -> str:
    """Return how far the guest has booted, as text."""
    pid = host.systemd.main_pid(host.systemd.state(paths.unit(name)))
    state = guest_state(host, name, pid, 1.0) if pid else "off"
    if state != "running":
        return f"the guest is {state}"
    for net in host.store.network_names():
        if any(lease.address == where for lease in network.leases(host.scope, net)):
            return "the guest has its address"
    return "the guest boots and has not requested its address"


def ssh_command(host: Host, spec: VMSpec, *, user: str | None, command: Sequence[str]) -> list[str]:
    """Return the ssh command line into a guest.

    The host's own key is offered beside the caller's. The guest's host key is accepted on first use and
    kept per VM, under a name that a new VM at the same address does not share.
    """
    arguments = [
        "ssh",
        "-o", f"HostKeyAlias=qsysd-{spec.uuid}",
        "-o", "StrictHostKeyChecking=accept-new",
        "-o", "LogLevel=ERROR",
        "-o", f"ConnectTimeout={CONNECT_TIMEOUT}",
        "-o", f"ConnectionAttempts={CONNECT_ATTEMPTS}",
    ]  # fmt: skip
    if os.access(os.path.dirname(host.scope.known_hosts(spec.name)), os.W_OK):
        arguments += ["-o", f"UserKnownHostsFile={host.scope.known_hosts(spec.name)}"]
    if os.access(host.scope.ssh_key, os.R_OK):
        arguments += ["-i", host.scope.ssh_key]
    login = user or spec.user or "root"
    return [*arguments, "-l", login, address(host, spec.name), *(["--", *command] if command else [])]

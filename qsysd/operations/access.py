"""The way into a guest: its address, ssh, the serial console, and waiting until it is there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

from qsysd import network, paths
from qsysd.errors import NotFoundError, StateError, TimeoutExpired
from qsysd.operations.control import OFF, describe
from qsysd.operations.host import Host
from qsysd.operations.listing import guest_state
from qsysd.spec import VMSpec

SSH_PORT = 22
PROBE_TIMEOUT = 2.0  # seconds for one try of the guest's ssh port
PROBE_PAUSE = 0.25
TELL_EVERY = 10.0


def addresses(host: Host, name: str) -> list[str]:
    """Return the addresses that a VM's networks give it. Raises NotFoundError."""
    host.store.require(name)
    return list(host.store.summary(name).addresses)


def address(host: Host, name: str) -> str:
    """Return a VM's first address. Raises NotFoundError for a VM without one."""
    found = addresses(host, name)
    if not found:
        raise NotFoundError(f"{name} is on no network that gives it an address", hint=f"qsysd console {name}")
    return found[0]


def require_running(host: Host, name: str) -> int:
    """Return the process of a running VM's QEMU.

    Raises StateError for a VM that does not run, and NotFoundError for one that does not exist.
    """
    host.store.require(name)
    state = host.systemd.state(paths.unit(name))
    if state.active != "active":
        raise StateError(
            f"{name} is not running (it is {describe(state)})",
            hint=f"qsysd start {name}" if state.active in OFF else f"qsysd status {name}",
        )
    pid = host.systemd.main_pid(state)
    if pid is None:
        raise StateError(f"{name} is just ending", hint=f"qsysd status {name}")
    return pid


def wait(host: Host, name: str, *, timeout: float) -> float:
    """Return, with the seconds it took, when the guest answers on ssh. timeout: seconds.

    Raises TimeoutExpired with what was seen last, and StateError when the VM goes off meanwhile.
    """
    where = address(host, name)
    started = time.monotonic()
    next_word = 2.0
    while True:
        if _answers(where):
            return time.monotonic() - started
        waited = time.monotonic() - started
        require_running(host, name)
        if waited > timeout:
            raise TimeoutExpired(
                f"{name} runs, but did not answer on ssh at {where} within {timeout:.0f} s: "
                f"{_seen(host, name, where)}",
                hint=f"qsysd logs {name}; qsysd console {name}",
            )
        if waited >= next_word:
            host.tell(f"{name}: waiting for ssh at {where}: {_seen(host, name, where)} ({waited:.0f} s)")
            next_word += TELL_EVERY
        time.sleep(PROBE_PAUSE)


def _answers(where: str) -> bool:
    """Return whether an ssh server greets at the address."""
    try:
        with socket.create_connection((where, SSH_PORT), timeout=PROBE_TIMEOUT) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _seen(host: Host, name: str, where: str) -> str:
    """Return in words how far the guest has come."""
    pid = host.systemd.main_pid(host.systemd.state(paths.unit(name)))
    state = guest_state(host, name, pid, 1.0) if pid else "off"
    if state != "running":
        return f"the guest is {state}"
    for net in host.store.network_names():
        if any(lease.address == where for lease in network.leases(host.scope, net)):
            return "it has its address"
    return "it boots and has not asked for its address yet"


def ssh_command(host: Host, spec: VMSpec, *, user: str | None, command: Sequence[str]) -> list[str]:
    """Return the ssh command line into a guest.

    The host's own key is offered beside the caller's. The guest's host key is taken on first use and
    kept per VM, under a name that a new VM at the same address does not share.
    """
    arguments = [
        "ssh",
        "-o", f"HostKeyAlias=qsysd-{spec.uuid}",
        "-o", "StrictHostKeyChecking=accept-new",
        "-o", "LogLevel=ERROR",
    ]  # fmt: skip
    if os.access(os.path.dirname(host.scope.known_hosts(spec.name)), os.W_OK):
        arguments += ["-o", f"UserKnownHostsFile={host.scope.known_hosts(spec.name)}"]
    if os.access(host.scope.ssh_key, os.R_OK):
        arguments += ["-i", host.scope.ssh_key]
    login = user or spec.user or "root"
    return [*arguments, "-l", login, address(host, spec.name), *(["--", *command] if command else [])]

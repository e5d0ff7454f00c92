"""Access to a guest: its addresses, SSH and the serial console."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from qsysd.host import guest_ssh, unit_states
from qsysd.host.context import Host
from qsysd.model.vm import VMSpec
from qsysd.runtime.qmp import socket_path

# Options of ssh(1), sufficient for a guest that reboots: seconds of an attempt, attempts at intervals of 1 s.
CONNECT_TIMEOUT = 15
CONNECT_ATTEMPTS = 20


@dataclass(frozen=True)
class Console:
    """A serial console. socket: the path of its UNIX socket; pid: of the QEMU that must listen on it."""

    socket: str
    pid: int


def addresses(host: Host, name: str) -> list[str]:
    """Return the addresses of a VM on its networks. Raise NotFoundError."""
    host.store.require(name)
    return list(host.store.summary(name).addresses)


def address(host: Host, name: str) -> str:
    """Return a VM's first address. Raise NotFoundError for a VM without one."""
    return guest_ssh.address(host, name)


def console(host: Host, name: str) -> Console:
    """Return the serial console of a running VM. Raise StateError, NotFoundError."""
    host.require_root()
    pid = unit_states.require_running(host, name)
    return Console(socket_path(host.scope, name, host.scope.console(name)), pid)


def ssh(host: Host, name: str, *, user: str | None = None, command: Sequence[str] = ()) -> list[str]:
    """Return the ssh command line into a guest, after its SSH server has answered.

    user: in the guest, None for that of the definition. command: to run in the guest, empty for a login.
    Raise StateError, NotFoundError, TimeoutExpired.
    """
    unit_states.require_running(host, name)
    arguments = _ssh_command(host, host.store.load(name), user, command)
    guest_ssh.wait_once(host, name)
    return arguments


def _ssh_command(host: Host, spec: VMSpec, user: str | None, command: Sequence[str]) -> list[str]:
    """Return the ssh command line into a guest.

    The key of the host is offered in addition to the caller's. The host key of the guest is accepted at first
    use and stored per VM, under a name that depends on the UUID.
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
    address = guest_ssh.address(host, spec.name)
    return [*arguments, "-l", login, address, *(["--", *command] if command else [])]

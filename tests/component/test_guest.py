"""Access to a guest: waiting for SSH, addresses, the serial console."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import own_qsysd
import pytest
from own_host import OwnHost
from vms import UNIT

from qsysd import paths
from qsysd.errors import NotFoundError, StateError, TimeoutExpired
from qsysd.host import guest_ssh
from qsysd.operations import create
from qsysd.operations import guest as guest_verbs
from qsysd.store import Started


@pytest.fixture
def guest(vm: OwnHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Return the listener that is the guest's ssh port, of a VM that runs."""
    vm.fake.set(UNIT, "active", "running")
    monkeypatch.setattr(guest_ssh, "address", lambda host, name: "127.0.0.1")
    monkeypatch.setattr(guest_ssh, "PROBE_PAUSE", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(guest_ssh, "SSH_PORT", listener.getsockname()[1])
        yield listener


def answer(listener: socket.socket, *greetings: bytes) -> threading.Thread:
    """Let the guest answer each try with the next of these words."""

    def serve() -> None:
        for greeting in greetings:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(greeting)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_wait_returns_when_an_ssh_server_answers(vm: OwnHost, guest: socket.socket) -> None:
    # a port that is open is not yet an ssh server
    thread = answer(guest, b"", b"HTTP/1.1 400", b"SSH-2.0-OpenSSH_9.2\r\n")
    assert guest_ssh.wait(vm, "web1", 60) < 60
    thread.join()


def test_wait_ends_at_its_timeout_with_a_hint_how_to_continue(vm: OwnHost, guest: socket.socket) -> None:
    guest.close()
    with pytest.raises(
        TimeoutExpired, match=r"web1: no answer on SSH at 127\.0\.0\.1 within 0 s: .*; the VM is kept"
    ) as caught:
        guest_ssh.wait(vm, "web1", 0.05)
    assert caught.value.hint == "qsysd ssh web1 continues waiting; qsysd logs web1 --console shows the boot"
    assert vm.waits == [""]


def test_a_wait_for_ssh_shows_the_last_line_of_the_console(
    vm: OwnHost, guest: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_ssh, "UPDATE_INTERVAL", 0)
    Path(vm.scope.console_log("web1")).write_text("Booting\nStarting \x1b[31mnetwork\n\n", encoding="utf-8")
    thread = answer(guest, b"", b"SSH-2.0-OpenSSH_9.2\r\n")
    guest_ssh.wait(vm, "web1", 60)
    thread.join()
    what, state, detail = vm.details[0]
    assert (what, detail) == ("web1: waiting for SSH", "Starting network")
    assert state.startswith("the guest ")
    assert vm.details[-1] == ("", "", "")


def test_ssh_waits_only_once_after_each_start(vm: OwnHost, guest: socket.socket) -> None:
    os.makedirs(vm.scope.started_dir)
    note = Path(vm.scope.started_record("web1"))
    note.write_text("0123456789abcdef\nQSYSD_CPUS=1\n", encoding="ascii")
    thread = answer(guest, b"SSH-2.0-OpenSSH_10.0\r\n")
    guest_ssh.wait_once(vm, "web1")
    thread.join()
    # nobody answers any more, and nobody is asked
    guest_ssh.wait_once(vm, "web1")
    assert vm.store.started("web1") == Started("0123456789abcdef", None, 1, "", ssh_answered=True)
    # until the next start
    note.write_text("0123456789abcdef\n", encoding="ascii")
    thread = answer(guest, b"SSH-2.0-OpenSSH_10.0\r\n")
    guest_ssh.wait_once(vm, "web1")
    thread.join()


def test_wait_ends_when_the_vm_is_off(vm: OwnHost, guest: socket.socket) -> None:
    guest.close()
    vm.fake.set(UNIT, "failed", "failed")
    with pytest.raises(StateError, match="web1 is not running"):
        guest_ssh.wait(vm, "web1", 60)


def test_a_vm_on_no_network_has_no_address(vm: OwnHost) -> None:
    create.create(vm, "name: alone\nimage: tiny\ndisks: [{}]\nnics: []\n", "x", start=False)
    with pytest.raises(NotFoundError, match="alone has no address") as caught:
        guest_verbs.address(vm, "alone")
    assert caught.value.hint == "qsysd console alone"
    assert guest_verbs.addresses(vm, "alone") == []


@pytest.fixture
def console(vm: OwnHost) -> Iterator[socket.socket]:
    """Return the listener that is QEMU's console socket."""
    vm.fake.set(UNIT, "active", "running")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(vm.scope.console("web1"))
        listener.listen(1)
        listener.settimeout(20)
        yield listener


def open_console(pid: int) -> subprocess.Popen[bytes]:
    here = os.path.dirname(own_qsysd.__file__)
    path = f"{os.path.dirname(os.path.dirname(paths.__file__))}:{here}"
    return subprocess.Popen(
        [sys.executable, own_qsysd.__file__, "console", "web1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": path, "FAKE_MAIN_PID": str(pid)},
    )


def test_console_connects_the_terminal_until_ctrl_bracket(console: socket.socket) -> None:
    process = open_console(os.getpid())
    connection, _ = console.accept()
    assert process.stdin and process.stdout
    with connection:
        connection.sendall(b"login: \xff\x00")
        assert process.stdout.read(9) == b"login: \xff\x00"
        process.stdin.write(b"root\r")
        process.stdin.flush()
        assert connection.recv(5) == b"root\r"
        process.stdin.write(b"\x1d")
        process.stdin.flush()
        assert connection.recv(5) == b""
    assert process.wait(20) == 0
    process.communicate()


def test_console_ends_when_qemu_closes_it(console: socket.socket) -> None:
    process = open_console(os.getpid())
    connection, _ = console.accept()
    connection.close()
    _, words = process.communicate(timeout=20)
    assert (process.returncode, words) == (0, b"")


def test_console_refuses_the_socket_of_another_process(console: socket.socket) -> None:
    process = open_console(os.getppid())
    _, words = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"does not belong to QEMU" in words


def test_console_reports_a_socket_that_does_not_exist(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    process = open_console(os.getpid())
    _, words = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"web1: cannot connect to the console " in words

"""Pause, resume and reset: the commands that are sent to QEMU, and a monitor that cannot be used."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest
from own_host import OwnHost
from qmp_peer import Connection, Peer, Refuse, Script
from vms import UNIT, one

from qsysd.errors import QsysdError, StateError
from qsysd.host import listing
from qsysd.operations import power
from qsysd.operations.list import list_vms


@pytest.fixture
def monitor(vm: OwnHost) -> Iterator[Callable[[Script], Peer]]:
    """Let QEMU run, and answer by a script at the monitor of the commands."""
    import contextlib

    vm.fake.set(UNIT, "active", "running")
    with contextlib.ExitStack() as stack:
        yield lambda script: stack.enter_context(Peer(vm.scope.monitor("web1", "cli"), script))


Serve = Callable[[Script], Peer]


@pytest.mark.parametrize(
    ("verb", "state", "what", "commands"),
    [
        ("pause", "running", "paused", ["stop"]),
        ("pause", "paused", "already_paused", []),
        ("resume", "paused", "resumed", ["cont"]),
        ("resume", "io-error", "resumed", ["cont"]),
        ("resume", "running", "already_running", []),
        ("reset", "running", "reset", ["system_reset"]),
    ],
)
def test_verbs_inside_a_vm(
    vm: OwnHost, monitor: Serve, verb: str, state: str, what: str, commands: list[str]
) -> None:
    answers = {"query-status": {"status": state}, "stop": {}, "cont": {}, "system_reset": {}}
    peer = monitor(lambda connection: connection.serve(answers))
    assert one(getattr(power, verb)(vm, ["web1"])) == what
    assert [name for name in peer.commands if name not in ("qmp_capabilities", "query-status")] == commands


@pytest.mark.parametrize("verb", ["pause", "resume", "reset"])
@pytest.mark.parametrize(
    ("active", "sub", "words"),
    [("inactive", "dead", "off"), ("activating", "auto-restart", "between a crash and its restart"),
    ("failed", "failed", "failed"),
     ("activating", "start-post", "starting"), ("deactivating", "stop", "stopping")],
)  # fmt: skip
def test_a_vm_that_does_not_run_is_refused_with_its_state(
    vm: OwnHost, verb: str, active: str, sub: str, words: str
) -> None:
    vm.fake.set(UNIT, active, sub)
    error = one(getattr(power, verb)(vm, ["web1"]))
    assert isinstance(error, StateError)
    assert f"web1 is not running: it is {words}" in error.message


def test_an_error_of_qemu_is_quoted_and_does_not_affect_other_vms(vm: OwnHost, monitor: Serve) -> None:
    def refuse() -> None:
        raise Refuse("Resetting the Virtual Machine is required")

    answers = {"query-status": {"status": "shutdown"}, "cont": refuse}
    monitor(lambda connection: connection.serve(answers))
    outcomes = power.resume(vm, ["web1", "web2"])
    assert (
        outcomes[0].error
        and outcomes[0].error.message == "web1: cont: Resetting the Virtual Machine is required"
    )
    assert isinstance(outcomes[1].error, StateError)


@pytest.mark.parametrize("script", ["busy", "garbage", "silent"])
def test_a_monitor_that_does_not_answer_is_an_error(
    vm: OwnHost, monitor: Serve, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(power, "MONITOR_TIMEOUT", 0.1)
    released = threading.Event()

    def busy(connection: Connection) -> None:
        released.wait(20)

    def silent(connection: Connection) -> None:
        connection.greet()
        released.wait(20)

    scripts: dict[str, Script] = {
        "busy": busy,
        "garbage": lambda connection: connection.send_bytes(b"\xff\n"),
        "silent": silent,
    }
    monitor(scripts[script])
    error = one(power.pause(vm, ["web1"]))
    assert isinstance(error, QsysdError)
    assert error.code == 1
    assert error.hint == "qsysd logs web1"
    # a list tells of the others all the same
    assert [each.guest for each in listing.listed(vm, timeout=0.1)] == ["unknown", None]
    released.set()


def test_no_command_is_sent_to_a_monitor_of_another_process(vm: OwnHost, monitor: Serve) -> None:
    # a QEMU that was taken over may have put a link to another VM's socket in its socket's place
    peer = monitor(lambda connection: connection.serve({"query-status": {"status": "running"}, "stop": {}}))
    vm.fake.main_process = os.getppid()
    error = one(power.pause(vm, ["web1"]))
    assert isinstance(error, QsysdError)
    assert "is not that of process" in error.message
    assert peer.commands == []
    assert list_vms(vm, ["web1"])[0].guest == "unknown"


def test_a_link_to_another_monitor_is_not_followed(vm: OwnHost, monitor: Serve) -> None:
    peer = monitor(lambda connection: connection.serve({"query-status": {"status": "running"}}))
    path = vm.scope.monitor("web1", "cli")
    os.rename(path, f"{path}.other")
    os.symlink(f"{path}.other", path)
    assert list_vms(vm, ["web1"])[0].guest == "unknown"
    assert peer.clients == 0

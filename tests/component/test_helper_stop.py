"""The steps ready and stop, against guests that do not obey and monitors that do not answer."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import pytest
from qmp_peer import Connection, Peer, Refuse, Script
from unit_steps import VM, StandIn

from qsysd.errors import HostError, InvalidError, QsysdError, TimeoutExpired
from qsysd.paths import Scope
from qsysd.runtime import readiness, roots, shutdown


def test_stop_powers_a_guest_off_and_cleans_up(
    qemu: StandIn, scope: Scope, journal: Callable[[], list[str]]
) -> None:
    qemu.monitor(lambda connection: connection.serve(qemu.obedient()), "stop")
    roots.make(scope.root_dir(VM))
    shutdown.stop(scope, VM)
    assert qemu.commands() == ["system_powerdown"]
    assert not qemu.is_running()
    assert journal() == []
    # and nothing is left for after-stop
    assert not os.path.exists(scope.root_dir(VM))


def test_stop_repeats_the_power_button_until_the_guest_is_off(qemu: StandIn, scope: Scope) -> None:
    pressed: list[int] = []

    def press() -> dict[str, object]:
        pressed.append(1)
        return qemu.end() if len(pressed) == 3 else {}

    qemu.monitor(lambda connection: connection.serve(qemu.obedient(system_powerdown=press)), "stop")
    shutdown.stop(scope, VM)
    assert qemu.commands() == ["system_powerdown"] * 3
    assert not qemu.is_running()


def test_stop_sends_quit_at_the_timeout_of_a_guest_that_ignores_the_power_button(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "1")
    qemu.monitor(lambda connection: connection.serve(qemu.obedient(system_powerdown={})), "stop")
    shutdown.stop(scope, VM)
    commands = qemu.commands()
    assert commands.count("system_powerdown") > 2
    assert commands[-1] == "quit"
    assert not qemu.is_running()
    assert journal() == ["the guest did not power off within 1 s; sending quit to QEMU"]


def test_stop_follows_no_link_in_place_of_the_directory_of_monitors(qemu: StandIn, scope: Scope) -> None:
    qemu.monitor(lambda connection: connection.serve(qemu.obedient()), "stop")
    os.rename(scope.vm_dir(VM), scope.vm_dir("other"))
    os.symlink("other", scope.vm_dir(VM))
    with pytest.raises(HostError, match=f"vms/{VM}: Not a directory"):
        shutdown.stop(scope, VM)
    assert qemu.is_running()


@pytest.mark.parametrize(
    ("state", "first"),
    [("paused", "cont"), ("io-error", "cont"), ("prelaunch", "cont"), ("suspended", "system_wakeup"),
    ("running", None),
     ("guest-panicked", None)],
)  # fmt: skip
def test_stop_wakes_a_paused_or_sleeping_guest_first(
    qemu: StandIn, scope: Scope, state: str, first: str | None
) -> None:
    answers = qemu.obedient(**{"query-status": {"status": state}, "cont": {}, "system_wakeup": {}})
    qemu.monitor(lambda connection: connection.serve(answers), "stop")
    shutdown.stop(scope, VM)
    assert qemu.commands() == [*([first] if first else []), "system_powerdown"]


def test_stop_sends_quit_to_a_guest_that_cannot_continue(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    def refuse() -> None:
        raise Refuse("Resetting the Virtual Machine is required")

    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "1")
    answers = qemu.obedient(**{"query-status": {"status": "paused"}, "cont": refuse})
    qemu.monitor(lambda connection: connection.serve(answers), "stop", "ready", "cli")
    shutdown.stop(scope, VM)
    assert "quit" in qemu.commands()
    assert "cont: Resetting the Virtual Machine is required" in journal()
    assert not qemu.is_running()


@pytest.mark.parametrize("first", ["busy", "garbage", "silent", "closed", "missing"])
def test_stop_uses_the_next_monitor_if_one_does_not_work(qemu: StandIn, scope: Scope, first: str) -> None:
    def busy(connection: Connection) -> None:
        released.wait(20)

    def silent(connection: Connection) -> None:
        connection.greet()
        released.wait(20)

    scripts: dict[str, Script] = {
        "busy": busy,
        "silent": silent,
        "garbage": lambda connection: connection.send_bytes(b"what?\n"),
        "closed": lambda connection: None,
    }
    released = threading.Event()
    if first in scripts:
        qemu.monitor(scripts[first], "stop")
    second = qemu.monitor(lambda connection: connection.serve(qemu.obedient()), "ready")
    shutdown.stop(scope, VM)
    released.set()
    assert second.commands[-1] == "system_powerdown"
    assert not qemu.is_running()


def test_stop_without_a_monitor_leaves_qemu_to_systemd(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "1")
    shutdown.stop(scope, VM)
    assert qemu.is_running()
    assert journal()[-1] == "QEMU did not exit; systemd terminates it"


def test_a_qemu_that_does_not_quit_is_left_to_systemd(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "0")
    monkeypatch.setattr(shutdown, "QUIT_TIMEOUT", 0.1)
    qemu.monitor(lambda connection: connection.serve({"quit": {}}), "stop")
    roots.make(scope.root_dir(VM))
    shutdown.stop(scope, VM)
    assert qemu.commands() == ["quit"]
    assert journal()[-1] == "QEMU did not exit; systemd terminates it"
    # what a running QEMU needs is still there, and after-stop sees that there is something to do
    assert os.path.exists(scope.root_dir(VM))


def test_stop_succeeds_if_qemu_exits_during_a_press(qemu: StandIn, scope: Scope) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        connection.receive()
        qemu.end()

    qemu.monitor(script, "stop")
    shutdown.stop(scope, VM)
    assert not qemu.is_running()


def test_stop_ignores_events(qemu: StandIn, scope: Scope) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        for _ in range(2000):
            connection.event("RTC_CHANGE", offset=1)
        while connection.answer_one(qemu.obedient()):
            connection.event("POWERDOWN")

    qemu.monitor(script, "stop")
    shutdown.stop(scope, VM)
    assert not qemu.is_running()


@pytest.mark.parametrize("pid", ["", "0x1", "-1", "none"])
def test_stop_is_quiet_after_qemu_has_exited(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, pid: str, journal: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("MAINPID", pid)
    roots.make(scope.root_dir(VM))
    shutdown.stop(scope, VM)
    assert journal() == []
    assert not os.path.exists(scope.root_dir(VM))


def test_stop_is_quiet_if_the_process_no_longer_exists(
    qemu: StandIn, scope: Scope, journal: Callable[[], list[str]]
) -> None:
    qemu.end()
    shutdown.stop(scope, VM)
    assert journal() == []


@pytest.mark.parametrize("timeout", ["", "x", "-1", "1.5", "9999999", "1\n", "\uff11"])
def test_stop_refuses_a_timeout_that_is_not_a_number(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, timeout: str
) -> None:
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", timeout)
    with pytest.raises(InvalidError, match="QSYSD_STOP_TIMEOUT"):
        shutdown.stop(scope, VM)


# ready


def test_a_qemu_is_ready_when_its_main_loop_answers(qemu: StandIn, scope: Scope) -> None:
    answers = {"query-status": {"status": "running"}}
    peer = qemu.monitor(lambda connection: connection.serve(answers), "ready")
    assert readiness.ready(scope, VM)
    assert peer.commands == ["qmp_capabilities", "query-status"]


def test_ready_waits_for_a_late_socket(qemu: StandIn, scope: Scope) -> None:
    path = scope.monitor(VM, "ready")

    def begin() -> None:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
        os.unlink(path)
        qemu.monitor(lambda connection: connection.serve({"query-status": {}}), "ready")

    timer = threading.Timer(0.1, begin)
    timer.start()
    assert readiness.ready(scope, VM)
    timer.join()


def test_a_qemu_that_refuses_its_options_is_not_ready(qemu: StandIn, scope: Scope) -> None:
    qemu.end()
    assert not readiness.ready(scope, VM)


def test_a_qemu_that_exits_during_a_query_is_not_ready(qemu: StandIn, scope: Scope) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        connection.receive()
        qemu.end()

    qemu.monitor(script, "ready")
    assert not readiness.ready(scope, VM)


@pytest.mark.parametrize("what", ["no socket", "no greeting", "no answer", "garbage"])
def test_a_qemu_that_hangs_is_not_ready(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(readiness, "TIMEOUT", 0.3)

    def no_greeting(connection: Connection) -> None:
        connection.receive()

    def no_answer(connection: Connection) -> None:
        connection.greet()
        while connection.receive():
            pass

    scripts: dict[str, Script] = {
        "no greeting": no_greeting,
        "no answer": no_answer,
        "garbage": lambda connection: connection.send_bytes(b"\xff\n"),
    }
    if what in scripts:
        qemu.monitor(scripts[what], "ready")
    with pytest.raises(QsysdError) as caught:
        readiness.ready(scope, VM)
    assert isinstance(caught.value, TimeoutExpired) is (what in ("no socket", "garbage"))


def test_ready_fails_without_a_main_process(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAINPID", raising=False)
    assert not readiness.ready(scope, VM)


# an upgrade


def test_a_vm_that_an_earlier_version_started_is_ready_and_stops(qemu: StandIn, scope: Scope) -> None:
    """Its sockets are in the unit's RuntimeDirectory."""
    for purpose in ("ready", "stop"):
        path = scope.earlier_socket(VM, scope.monitor(VM, purpose))
        assert path == f"run/qsysd/vms/{VM}/qmp-{purpose}.sock"
        peer = Peer(path, lambda connection: connection.serve(qemu.obedient()))
        qemu.peers[purpose] = qemu.stack.enter_context(peer)
    assert readiness.ready(scope, VM)
    shutdown.stop(scope, VM)
    assert qemu.commands() == ["system_powerdown"]
    assert not qemu.is_running()

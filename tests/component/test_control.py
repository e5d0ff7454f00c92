"""Verbs on VMs that exist: the jobs they ask for, what they make of the answers, what they tell QEMU."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import own_qsysd
import pytest
from own_host import OwnHost
from qmp_peer import Connection, Peer, Refuse, Script
from samples import KEY

from qsysd import paths
from qsysd.errors import HostError, InvalidError, NotFoundError, QsysdError, StateError, TimeoutExpired
from qsysd.host import guest_ssh, intents, journal, listing, unit_jobs
from qsysd.host.outcomes import Outcome
from qsysd.operations import create, delete, edit, power, query
from qsysd.operations import guest as guest_verbs
from qsysd.store import Started

UNIT = paths.unit("web1")


@pytest.fixture
def vm(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Return a host with the VMs web1 and web2, which are off."""
    monkeypatch.setattr(journal, "failure", lambda *_: "")
    for name in ("web1", "web2"):
        text = f"name: {name}\nimage: tiny\ndisks: [{{}}]\nseed: false\n"
        create.create(host, text, "x", start=False, enable=False)
    host.fake.calls.clear()
    return host


def jobs(host: OwnHost) -> list[str]:
    """Return the jobs that were asked for, and what goes with them."""
    words = ("StartUnit", "StopUnit", "RestartUnit", "KillUnit", "Reload")
    return [
        call.replace(".service", "").replace("qemu-vm@", "")
        for call in host.fake.calls
        if call.startswith(words)
    ]


def one(outcomes: list[Outcome]) -> str | QsysdError:
    (outcome,) = outcomes
    return outcome.error or outcome.state


# start and restart


def test_a_start_counts_as_the_first_one_and_uses_what_is_on_disk(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "failed", "failed")
    assert one(power.start(vm, ["web1"])) == "started"
    calls = [call.split()[0] for call in vm.fake.calls if "web1" in call]
    assert calls.index("ResetFailedUnit") < calls.index("refresh") < calls.index("StartUnit")


def test_what_runs_is_not_started_again(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    assert [outcome.state for outcome in power.start(vm, ["web1", "web2"])] == ["already_running", "started"]
    assert jobs(vm) == ["StartUnit web2"]


@pytest.mark.parametrize(("verb", "state"), [("restart", "active"), ("start", "deactivating")])
def test_a_start_waits_for_the_stop_before_it_however_long_that_may_take(
    vm: OwnHost, verb: str, state: str
) -> None:
    vm.fake.stop_timeout = 600
    vm.fake.set(UNIT, state, state)
    getattr(power, verb)(vm, ["web1", "web2"])
    # TimeoutStopSec counts for ExecStop, and again for the exit that follows.
    assert vm.fake.timeouts[0] >= 2 * 600 + unit_jobs.START_TIMEOUT


@pytest.fixture
def chain(vm: OwnHost) -> OwnHost:
    """Return a host on which web1 depends on app1, which depends on db1; all are off."""
    for name, other in (("db1", ""), ("app1", "db1"), ("web3", "app1")):
        text = f"name: {name}\nimage: tiny\ndisks: [{{}}]\nseed: false\n"
        more = f"depends_on: [{other}]\n" if other else ""
        create.create(vm, text + more, "x", start=False, enable=False)
    vm.fake.calls.clear()
    return vm


def test_start_starts_dependencies_first_and_names_them(chain: OwnHost) -> None:
    assert [(outcome.name, outcome.state, outcome.needed_by) for outcome in power.start(chain, ["web3"])] == [
        ("db1", "started", "app1"), ("app1", "started", "web3"), ("web3", "started", ""),
    ]  # fmt: skip
    assert jobs(chain) == ["StartUnit db1", "StartUnit app1", "StartUnit web3"]
    chain.fake.calls.clear()
    # In the order of the names, and nothing about what runs already unless it was named.
    chain.fake.set(paths.unit("web3"), "inactive", "dead")
    outcomes = power.start(chain, ["web3", "db1"])
    assert [outcome.state for outcome in outcomes] == ["started", "already_running"]


def test_a_dependency_that_fails_is_reported_and_does_not_prevent_the_start(chain: OwnHost) -> None:
    chain.fake.results[paths.unit("db1")] = "failed"
    first, second, third = power.start(chain, ["web3"])
    assert isinstance(first.error, QsysdError)
    assert (first.name, second.state, second.needed_by, third.state) == ("db1", "started", "web3", "started")


def test_a_dependency_that_does_not_exist_is_only_a_warning(chain: OwnHost) -> None:
    delete.delete(chain, ["db1"])
    assert one(power.start(chain, ["app1"])) == "started"
    assert chain.told == ["warning: app1 depends on db1, which does not exist"]


def test_create_starts_dependencies_first(chain: OwnHost) -> None:
    text = "name: web4\nimage: tiny\ndisks: [{}]\nseed: false\ndepends_on: [app1]\n"
    create.create(chain, text, "x")
    assert jobs(chain) == ["StartUnit db1", "StartUnit app1", "StartUnit web4"]
    assert chain.told == ["db1: started (app1 depends on it)", "app1: started (web4 depends on it)"]


@pytest.mark.parametrize("verb", ["restart", "enable"])
def test_other_verbs_leave_dependencies_alone(chain: OwnHost, verb: str) -> None:
    getattr(power, verb)(chain, ["web3"])
    assert not [call for call in chain.fake.calls if "db1" in call or "app1" in call]


@pytest.mark.parametrize("sub", ["auto-restart", "auto-restart-queued"])
def test_a_person_does_not_wait_for_the_pause_before_a_restart(vm: OwnHost, sub: str) -> None:
    vm.fake.set(UNIT, "activating", sub)
    assert one(power.start(vm, ["web1"])) == "started"
    assert jobs(vm) == ["RestartUnit web1"]


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_a_definition_that_is_not_valid_hinders_no_other_vm(vm: OwnHost, verb: str) -> None:
    path = Path(vm.scope.definition("web1"))
    path.write_text("name: web1\nmemory: x\n", encoding="utf-8")
    later = os.stat(vm.scope.environment("web1")).st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))
    first, second = getattr(power, verb)(vm, ["web1", "web2"])
    assert isinstance(first.error, InvalidError)
    assert "web1.yaml:2: memory" in first.error.message
    assert second.state == f"{verb}ed"
    assert jobs(vm) == [f"{verb.title()}Unit web2"]


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        ("failed", QsysdError, "web1 did not start: result of the job: failed"),
        ("canceled", StateError, "the start was canceled by another command"),
        ("waiting", TimeoutExpired, "not started within 180 s"),
        ("not-found", HostError, r"systemd has no unit qemu-vm@web1\.service"),
        ("dependency", QsysdError, "a unit that it depends on failed"),
    ],
)
def test_a_start_that_fails_is_told_as_what_it_is(
    vm: OwnHost, result: str, kind: type[QsysdError], words: str
) -> None:
    vm.fake.results[UNIT] = result
    first, second = power.start(vm, ["web1", "web2"])
    assert type(first.error) is kind
    assert re.search(words, first.error.message)
    # the other one is started all the same
    assert second.state == "started"


def test_qemus_own_words_are_shown(vm: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    vm.fake.results[UNIT] = "failed"
    monkeypatch.setattr(journal, "failure", lambda host, unit: f"qemu-system-x86_64: {unit}")
    error = one(power.start(vm, ["web1"]))
    assert isinstance(error, QsysdError)
    assert error.message == "web1 did not start: qemu-system-x86_64: qemu-vm@web1.service"
    assert error.hint == "qsysd logs web1"


def test_a_file_that_qemus_root_does_not_contain_is_named(vm: OwnHost, tmp_path: Path) -> None:
    path = tmp_path / "x.iso"
    path.touch()
    text = f"name: web5\nimage: tiny\nseed: false\nqemu_args: [-cdrom, {path}, -append, /no/file]\n"
    create.create(vm, text, start=False)
    vm.fake.results[paths.unit("web5")] = "failed"
    error = one(power.start(vm, ["web5"]))
    assert isinstance(error, QsysdError)
    assert f"QEMU can open {path} only if BindReadOnlyPaths= in a drop-in shows it" in error.message


@pytest.mark.parametrize(
    "verb", ["start", "stop", "kill", "restart", "reset", "pause", "resume", "enable", "disable"]
)
def test_one_unknown_name_and_nothing_is_done(vm: OwnHost, verb: str) -> None:
    with pytest.raises(NotFoundError, match="VM 'web3' does not exist"):
        getattr(power, verb)(vm, ["web1", "web3"])
    assert jobs(vm) == []
    assert not [call for call in vm.fake.calls if "UnitFiles" in call]


# stop and kill


def test_a_stop(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    assert [outcome.state for outcome in power.stop(vm, ["web1", "web2"])] == ["stopped", "already_off"]
    assert jobs(vm) == ["StopUnit web1"]


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        ("canceled", StateError, "another command started it again"),
        ("waiting", TimeoutExpired, "not stopped: waiting"),
    ],
)
def test_a_stop_that_fails(vm: OwnHost, result: str, kind: type[QsysdError], words: str) -> None:
    vm.fake.set(UNIT, "active", "running")
    vm.fake.results[UNIT] = result
    error = one(power.stop(vm, ["web1"]))
    assert type(error) is kind
    assert words in error.message


def test_a_kill_asks_systemd_first_so_that_the_death_is_no_crash(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    assert one(power.kill(vm, ["web1"])) == "killed"
    assert jobs(vm) == ["StopUnit web1", f"KillUnit web1 main {int(signal.SIGTERM)}"]


def test_a_kill_ends_in_the_unanswerable_signal(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    vm.fake.results[UNIT] = "waiting"
    with pytest.raises(QsysdError, match=r"qemu-vm@web1\.service cannot be stopped"):
        power.kill(vm, ["web1"])
    assert jobs(vm)[-1] == f"KillUnit web1 all {int(signal.SIGKILL)}"


def test_a_kill_gets_through_while_a_stop_waits(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    other = OwnHost(vm.scope)
    killed: list[str | QsysdError] = []

    def during(method: str, unit: str) -> None:
        vm.fake.during = lambda method, unit: None
        killed.append(one(power.kill(other, ["web1"])))

    vm.fake.during = during
    assert one(power.stop(vm, ["web1"])) == "stopped"
    assert killed == ["killed"]
    assert other.told == []


# over the monitor


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
def test_what_does_not_run_has_no_inside(vm: OwnHost, verb: str, active: str, sub: str, words: str) -> None:
    vm.fake.set(UNIT, active, sub)
    error = one(getattr(power, verb)(vm, ["web1"]))
    assert isinstance(error, StateError)
    assert f"web1 is not running: it is {words}" in error.message


def test_a_refusal_of_qemu_is_quoted_and_the_next_vm_is_asked(vm: OwnHost, monitor: Serve) -> None:
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
def test_a_monitor_that_is_of_no_use_is_told(
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


def test_a_monitor_of_another_process_is_not_spoken_with(vm: OwnHost, monitor: Serve) -> None:
    # a QEMU that was taken over may have put a link to another VM's socket in its socket's place
    peer = monitor(lambda connection: connection.serve({"query-status": {"status": "running"}, "stop": {}}))
    vm.fake.main_process = os.getppid()
    error = one(power.pause(vm, ["web1"]))
    assert isinstance(error, QsysdError)
    assert "is not that of process" in error.message
    assert peer.commands == []
    assert query.list_vms(vm, ["web1"])[0].guest == "unknown"


def test_a_link_to_another_monitor_is_not_asked(vm: OwnHost, monitor: Serve) -> None:
    peer = monitor(lambda connection: connection.serve({"query-status": {"status": "running"}}))
    path = vm.scope.monitor("web1", "cli")
    os.rename(path, f"{path}.other")
    os.symlink(f"{path}.other", path)
    assert query.list_vms(vm, ["web1"])[0].guest == "unknown"
    assert peer.clients == 0


# list and status


def test_a_list_asks_systemd_once_for_all(vm: OwnHost) -> None:
    found = query.list_vms(vm)
    assert [(each.name, each.active, each.guest, each.pid) for each in found] == [
        ("web1", "inactive", None, None), ("web2", "inactive", None, None),
    ]  # fmt: skip
    assert len(vm.fake.calls) == 1


def test_a_list_only_reports_what_was_killed(vm: OwnHost) -> None:
    intents.begin(vm, "web2", "delete")
    assert len(query.list_vms(vm)) == 2
    assert os.path.exists(vm.scope.intent("web2", "delete"))
    (status,) = query.status(vm, ["web2"])
    assert status.pending == [
        "delete: a command was killed before its end; the next changing command repairs it"
    ]


def test_a_broken_vm_is_in_the_list_and_its_status_tells_why(vm: OwnHost) -> None:
    Path(vm.scope.definition("web1")).write_text("name: web1\nmemory: x\n", encoding="utf-8")
    os.unlink(vm.scope.environment("web1"))
    assert [each.name for each in query.list_vms(vm)] == ["web1", "web2"]
    (status,) = query.status(vm, ["web1"])
    assert status.problem
    assert "web1.yaml:2: memory" in status.problem


def test_what_waits_for_a_restart_is_pending(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    os.makedirs(vm.scope.started_dir)
    note = Path(vm.scope.started_record("web1"))
    note.write_text(f"{vm.store.summary('web1').digest}\n", encoding="utf-8")
    assert query.pending(vm, "web1", running=True) == []
    note.write_text("0123456789abcdef\n", encoding="utf-8")
    assert query.pending(vm, "web1", running=True)[0].startswith("restart: ")
    assert query.pending(vm, "web1", running=False) == []


def test_list_and_status_show_what_runs_and_what_is_pending(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    os.makedirs(vm.scope.started_dir)
    note = Path(vm.scope.started_record("web1"))
    lines = ("0123456789abcdef", "QSYSD_MEMORY_MIB=512", "QSYSD_CPUS=1", "QSYSD_ACCELERATOR=kvm")
    note.write_text("\n".join(lines) + "\n", encoding="ascii")
    (shown,) = query.status(vm, ["web1"])
    assert (shown.memory_mib, shown.pending_memory_mib) == (512, 1024)
    assert (shown.cpus, shown.pending_cpus) == (1, None)
    assert shown.accelerator == "kvm"
    assert [disk.size for disk in shown.disks] == [65536]
    # its note is of no importance once it is off
    vm.fake.set(UNIT, "inactive", "dead")
    (shown,) = query.status(vm, ["web1"])
    assert (shown.memory_mib, shown.pending_memory_mib, shown.accelerator) == (1024, None, "")


def test_edit_names_what_takes_effect_at_the_first_boot_only(vm: OwnHost) -> None:
    before = vm.store.require("web1")
    edit.edit(vm, "web1", re.sub("user: .*", f"user: bob\nssh_keys: [{KEY}]", before), before=before)
    keys, user = vm.told
    assert "ssh_keys takes effect at the guest's first boot only" in keys
    assert "user is the login of qsysd ssh; it is not created in the guest" in user
    vm.told.clear()
    before = vm.store.require("web1")
    edit.edit(vm, "web1", before.replace("1G", "2G"), before=before)
    assert vm.told == []


# into the guest


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


def test_a_guest_is_waited_for_until_ssh_answers(vm: OwnHost, guest: socket.socket) -> None:
    # a port that is open is not yet an ssh server
    thread = answer(guest, b"", b"HTTP/1.1 400", b"SSH-2.0-OpenSSH_9.2\r\n")
    assert guest_verbs.wait(vm, "web1", timeout=60) < 60
    thread.join()


def test_a_guest_that_never_answers_is_kept_and_the_way_to_continue_named(
    vm: OwnHost, guest: socket.socket
) -> None:
    guest.close()
    with pytest.raises(
        TimeoutExpired, match=r"web1: no answer on SSH at 127\.0\.0\.1 within 0 s: .*; the VM is kept"
    ) as caught:
        guest_verbs.wait(vm, "web1", timeout=0.05)
    assert caught.value.hint == "qsysd ssh web1 continues waiting; qsysd logs web1 --console shows the boot"
    assert vm.waits == [""]


def test_a_wait_for_ssh_shows_the_last_line_of_the_console(
    vm: OwnHost, guest: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_ssh, "UPDATE_INTERVAL", 0)
    Path(vm.scope.console_log("web1")).write_text("Booting\nStarting \x1b[31mnetwork\n\n", encoding="utf-8")
    thread = answer(guest, b"", b"SSH-2.0-OpenSSH_9.2\r\n")
    guest_verbs.wait(vm, "web1")
    thread.join()
    what, state, detail = vm.details[0]
    assert (what, detail) == ("web1: waiting for SSH", "Starting network")
    assert state.startswith("the guest ")
    assert vm.details[-1] == ("", "", "")


def test_a_guest_that_has_answered_is_not_tried_again_before_each_ssh(
    vm: OwnHost, guest: socket.socket
) -> None:
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


def test_a_wait_names_what_the_job_waits_for_at_the_moment(vm: OwnHost) -> None:
    """A restart waits for the guest first, and then for QEMU."""
    vm.fake.set(UNIT, "active", "running")

    def during(_method: str, _unit: str) -> None:
        for active, sub in (("deactivating", "stop"), ("activating", "start-post")):
            vm.fake.set(UNIT, active, sub)
            vm.fake.tick(2.0)

    vm.fake.during = during
    assert one(power.restart(vm, ["web1"])) == "restarted"
    assert vm.waits == [
        "web1: waiting for the guest to power off",
        "web1: waiting for QEMU to answer",
        "",
    ]


def test_a_vm_that_goes_off_meanwhile_is_not_waited_for(vm: OwnHost, guest: socket.socket) -> None:
    guest.close()
    vm.fake.set(UNIT, "failed", "failed")
    with pytest.raises(StateError, match="web1 is not running"):
        guest_verbs.wait(vm, "web1", timeout=60)


def test_a_vm_on_no_network_has_no_address(vm: OwnHost) -> None:
    create.create(vm, "name: alone\nimage: tiny\ndisks: [{}]\nnics: []\n", "x", start=False)
    with pytest.raises(NotFoundError, match="alone has no address") as caught:
        guest_verbs.address(vm, "alone")
    assert caught.value.hint == "qsysd console alone"
    assert guest_verbs.addresses(vm, "alone") == []


# the console


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


def test_a_console_is_joined_to_the_terminal_until_ctrl_bracket(console: socket.socket) -> None:
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


def test_a_console_ends_with_qemu(console: socket.socket) -> None:
    process = open_console(os.getpid())
    connection, _ = console.accept()
    connection.close()
    _, words = process.communicate(timeout=20)
    assert (process.returncode, words) == (0, b"")


def test_a_console_of_another_process_is_not_joined(console: socket.socket) -> None:
    process = open_console(os.getppid())
    _, words = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"does not belong to QEMU" in words


def test_a_console_that_is_not_there_says_so(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    process = open_console(os.getpid())
    _, words = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"web1: cannot connect to the console " in words

"""Start, restart, stop and kill: the jobs that they enqueue, and the errors of jobs that fail."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from own_host import OwnHost
from vms import UNIT, jobs, make, one

from qsysd import paths
from qsysd.errors import HostError, InvalidError, NotFoundError, QsysdError, StateError, TimeoutExpired
from qsysd.host import journal, unit_jobs
from qsysd.operations import create, delete, power


def test_start_resets_the_start_counter_and_uses_the_files_on_disk(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "failed", "failed")
    assert one(power.start(vm, ["web1"])) == "started"
    calls = [call.split()[0] for call in vm.fake.calls if "web1" in call]
    assert calls.index("ResetFailedUnit") < calls.index("refresh") < calls.index("StartUnit")


def test_start_leaves_a_running_vm_alone(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    assert [outcome.state for outcome in power.start(vm, ["web1", "web2"])] == ["already_running", "started"]
    assert jobs(vm) == ["StartUnit web2"]


@pytest.mark.parametrize(("verb", "state"), [("restart", "active"), ("start", "deactivating")])
def test_the_timeout_of_a_start_includes_that_of_a_stop_before_it(vm: OwnHost, verb: str, state: str) -> None:
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
def test_restart_and_enable_leave_dependencies_alone(chain: OwnHost, verb: str) -> None:
    getattr(power, verb)(chain, ["web3"])
    assert not [call for call in chain.fake.calls if "db1" in call or "app1" in call]


@pytest.mark.parametrize("sub", ["auto-restart", "auto-restart-queued"])
def test_start_during_auto_restart_starts_at_once(vm: OwnHost, sub: str) -> None:
    vm.fake.set(UNIT, "activating", sub)
    assert one(power.start(vm, ["web1"])) == "started"
    assert jobs(vm) == ["RestartUnit web1"]


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_a_definition_that_is_not_valid_does_not_affect_other_vms(vm: OwnHost, verb: str) -> None:
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
def test_the_error_of_a_start_follows_the_result_of_its_job(
    vm: OwnHost, result: str, kind: type[QsysdError], words: str
) -> None:
    vm.fake.results[UNIT] = result
    first, second = power.start(vm, ["web1", "web2"])
    assert type(first.error) is kind
    assert re.search(words, first.error.message)
    # the other one is started all the same
    assert second.state == "started"


def test_a_failed_start_shows_the_message_of_qemu(vm: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert f"QEMU can open {path} only with BindReadOnlyPaths= in a drop-in" in error.message


@pytest.mark.parametrize(
    "verb", ["start", "stop", "kill", "restart", "reset", "pause", "resume", "enable", "disable"]
)
def test_an_unknown_name_is_refused_before_anything_is_done(vm: OwnHost, verb: str) -> None:
    with pytest.raises(NotFoundError, match="VM 'web3' does not exist"):
        getattr(power, verb)(vm, ["web1", "web3"])
    assert jobs(vm) == []
    assert not [call for call in vm.fake.calls if "UnitFiles" in call]


def test_stop_stops_running_vms_only(vm: OwnHost) -> None:
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
def test_the_error_of_a_stop_follows_the_result_of_its_job(
    vm: OwnHost, result: str, kind: type[QsysdError], words: str
) -> None:
    vm.fake.set(UNIT, "active", "running")
    vm.fake.results[UNIT] = result
    error = one(power.stop(vm, ["web1"]))
    assert type(error) is kind
    assert words in error.message


def test_kill_enqueues_the_stop_job_before_its_signal(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    assert one(power.kill(vm, ["web1"])) == "killed"
    assert jobs(vm) == ["StopUnit web1", f"KillUnit web1 main {int(signal.SIGTERM)}"]


def test_kill_ends_with_sigkill(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    vm.fake.results[UNIT] = "waiting"
    with pytest.raises(QsysdError, match=r"qemu-vm@web1\.service cannot be stopped"):
        power.kill(vm, ["web1"])
    assert jobs(vm)[-1] == f"KillUnit web1 all {int(signal.SIGKILL)}"


def test_kill_works_while_a_stop_waits(vm: OwnHost) -> None:
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


def test_progress_follows_the_state_of_the_unit(vm: OwnHost) -> None:
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


def test_a_definition_changed_by_hand_takes_effect_at_the_next_start(host: OwnHost) -> None:
    make(host, start=False)
    path = Path(host.scope.definition("web1"))
    path.write_text(path.read_text(encoding="utf-8").replace("cpus: 1", "cpus: 3"), encoding="utf-8")
    later = os.stat(host.scope.environment("web1")).st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))
    power.start(host, ["web1"])
    assert host.store.summary("web1").cpus == 3

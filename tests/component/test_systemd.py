"""systemd over D-Bus: a private bus with a scripted systemd that is fast, slow, fails or exits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_systemd import ALREADY_SUBSCRIBED, Bus, private_bus

from qsysd import systemd
from qsysd.errors import RUN_AS_ROOT, HostError, NotFoundError, QsysdError, TimeoutExpired
from qsysd.systemd import JobResult, Systemd, UnitState
from qsysd.systemd import bus as bus_module
from qsysd.systemd import jobs as jobs_module

LONG = 20.0  # seconds; nothing here takes that long unless it hangs


def unit(word: str) -> str:
    return f"qemu-vm@{word}.service"


@pytest.fixture(scope="module")
def shared_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    """Run one bus for the tests that leave it as it is."""
    with private_bus(tmp_path_factory.mktemp("bus")) as bus:
        yield bus


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    """Run a bus that the test may break."""
    with private_bus(tmp_path) as bus:
        yield bus


@pytest.fixture
def client(shared_bus: Bus) -> Systemd:
    return Systemd(shared_bus.address)


def start(client: Systemd, *words: str, timeout: float = LONG) -> list[str]:
    """Return the results of starting units."""
    return [result.result for result in client.run_jobs("StartUnit", map(unit, words), timeout=timeout)]


# jobs


@pytest.mark.parametrize("result", ["done", "failed", "canceled", "timeout", "dependency", "skipped"])
def test_a_job_has_the_result_of_systemd(client: Systemd, result: str) -> None:
    (found,) = client.run_jobs("StopUnit", [unit(result)], timeout=LONG)
    assert found == JobResult(unit(result), result)
    assert found.done is (result in ("done", "skipped"))


def test_a_job_that_ends_before_its_reply_is_not_missed(client: Systemd) -> None:
    assert start(client, "early", "ok", "early-2") == ["done", "done", "done"]


def test_jobs_run_in_parallel_and_their_results_are_in_order(client: Systemd) -> None:
    words = ["ok-1", "failed-1", "early-1", "canceled-1", "nosuch-1", "ok-2"]
    assert start(client, *words) == ["done", "failed", "done", "canceled", "not-found", "done"]


def test_a_unit_that_is_named_twice_is_one_job(client: Systemd, shared_bus: Bus) -> None:
    assert start(client, "twice", "twice") == ["done"]
    assert shared_bus.calls().count(f"StartUnit {unit('twice')} replace") == 1


def test_no_units_are_no_jobs(client: Systemd) -> None:
    assert start(client) == []


def test_a_job_that_does_not_end_is_waiting_after_the_timeout(client: Systemd) -> None:
    assert start(client, "never", "ok", timeout=0.2) == ["waiting", "done"]
    # and the next wait is not confused by it
    assert start(client, "ok-3") == ["done"]


def test_a_wait_is_reported(client: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "TICK", 0.05)
    told: list[float] = []
    client.run_jobs("StartUnit", [unit("never")], timeout=0.5, tick=told.append)
    assert told
    assert told == sorted(told)


def test_a_function_is_called_when_all_jobs_are_enqueued(client: Systemd, shared_bus: Bus) -> None:
    client.run_jobs(
        "StopUnit",
        [unit("done-k1"), unit("done-k2")],
        timeout=LONG,
        enqueued=lambda: client.kill(unit("done-k2"), signal.SIGTERM),
    )
    calls = [call for call in shared_bus.calls() if "done-k" in call]
    assert calls == [
        f"StopUnit {unit('done-k1')} replace",
        f"StopUnit {unit('done-k2')} replace",
        f"KillUnit {unit('done-k2')} main 15",
    ]


def test_a_refused_unit_does_not_affect_the_others(client: Systemd) -> None:
    results = client.run_jobs("StartUnit", [unit("masked"), unit("ok")], timeout=LONG)
    assert results == [
        JobResult(unit("masked"), "refused", "Unit qemu-vm@masked.service is masked."),
        JobResult(unit("ok"), "done"),
    ]
    assert not results[0].done


def test_a_signal_of_another_sender_ends_no_job(client: Systemd) -> None:
    assert start(client, "forged") == ["failed"]


def test_each_client_waits_for_its_own_jobs(client: Systemd, shared_bus: Bus) -> None:
    other = Systemd(shared_bus.address)
    assert start(client, "ok-a") == ["done"]
    assert start(other, "failed-a") == ["failed"]
    assert start(client, "ok-b") == ["done"]


# errors


@pytest.mark.parametrize("word", ["denied", "polkit"])
def test_a_lack_of_permission_gives_a_hint(client: Systemd, word: str) -> None:
    with pytest.raises(QsysdError, match=r"^systemd: StartUnit: (Permission|Interactive)") as caught:
        start(client, word)
    assert caught.value.code == 1
    assert caught.value.hint == RUN_AS_ROOT


def test_an_unknown_unit_is_not_found(client: Systemd) -> None:
    with pytest.raises(NotFoundError, match=r"Unit qemu-vm@nosuch\.service not found"):
        client.kill(unit("nosuch"), signal.SIGTERM)
    with pytest.raises(NotFoundError):
        client.properties(unit("nosuch"))


def test_an_unknown_object_is_not_found(client: Systemd) -> None:
    with pytest.raises(QsysdError):
        client.get("/org/freedesktop/systemd1/unit/no", "org.freedesktop.systemd1.Unit", "NeedDaemonReload")


def test_a_call_without_an_answer_ends_at_its_deadline(
    client: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module.Bus.call, "__kwdefaults__", {"path": bus_module.PATH, "timeout": 0.2})
    with pytest.raises(TimeoutExpired) as caught:
        client.reset_failed(unit("hangs"))
    assert caught.value.hint == "systemd is busy or hangs: systemctl status"


def test_a_missing_bus_gives_a_hint(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="the system bus cannot be reached") as caught:
        Systemd(f"unix:path={tmp_path}/nothing").version()
    assert caught.value.code == 7
    assert caught.value.hint


def test_a_bus_without_systemd_gives_a_hint(bus: Bus) -> None:
    bus.systemd.kill()
    bus.systemd.wait()
    with pytest.raises(HostError) as caught:
        Systemd(bus.address).version()
    assert caught.value.hint == "qsysd needs a host booted by systemd"


def test_systemd_that_exits_during_a_call_is_an_error(bus: Bus) -> None:
    client = Systemd(bus.address)
    client.version()
    timer = threading.Timer(0.1, bus.systemd.kill)
    timer.start()
    with pytest.raises(QsysdError):
        client.reset_failed(unit("hangs"))
    timer.join()


def test_a_bus_that_exits_during_a_job_is_an_error(bus: Bus) -> None:
    client = Systemd(bus.address)
    with pytest.raises(HostError, match="the system bus cannot be reached"):
        client.run_jobs("StartUnit", [unit("never")], timeout=LONG, enqueued=bus.daemon.kill)


def test_a_bus_that_exits_between_two_calls_is_an_error(bus: Bus) -> None:
    client = Systemd(bus.address)
    assert start(client, "ok") == ["done"]
    bus.daemon.kill()
    bus.daemon.wait()
    with pytest.raises(HostError):
        client.version()


def test_a_restarted_bus_is_used_again_with_its_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with private_bus(tmp_path) as bus:
        client = Systemd(bus.address.split(",")[0])
        assert start(client, "ok") == ["done"]
    with pytest.raises(HostError):
        client.version()
    with private_bus(tmp_path):
        assert start(client, "ok", "failed") == ["done", "failed"]


def test_a_job_whose_signal_is_lost_ends_as_its_unit_shows(
    client: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "CHECK_INTERVAL", 0.05)
    assert start(client, "lost", "ok-l", "failed-l") == ["done", "done", "failed"]
    (stopped,) = client.run_jobs("StopUnit", [unit("lost")], timeout=LONG)
    # It is active again: another command has started it.
    assert stopped.result == "canceled"


def test_a_job_is_waited_for_over_a_restart_of_the_bus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as buses:
        first = buses.enter_context(private_bus(tmp_path))
        client = Systemd(first.address.split(",")[0], patience=LONG)

        def restart() -> None:
            first.close()
            monkeypatch.setenv(ALREADY_SUBSCRIBED, "1")
            buses.enter_context(private_bus(tmp_path))

        result = client.run_jobs("StartUnit", [unit("never")], timeout=LONG, enqueued=restart)
        assert result == [JobResult(unit("never"), "done")]
        # Calls and jobs go on over the new connection.
        assert client.version() == 252
        assert start(client, "ok", "failed") == ["done", "failed"]


def test_a_process_does_not_exit_with_its_bus(bus: Bus) -> None:
    # in a process of its own, and with the system's bus: that is the one whose end GDBus makes ours
    package = os.path.dirname(os.path.dirname(os.path.dirname(systemd.__file__)))
    program = f"""
import os, signal
from qsysd.errors import RUN_AS_ROOT, HostError
from qsysd.systemd import Systemd
client = Systemd(patience=0)
try:
    end = lambda: os.kill({bus.daemon.pid}, signal.SIGKILL)
    client.run_jobs('StartUnit', ['{unit("never")}'], timeout=20, enqueued=end)
except HostError as error:
    print('survived:', error.message.partition(':')[0])
"""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": package, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
    )
    assert (done.returncode, done.stdout) == (0, "survived: the system bus cannot be reached\n"), done.stderr


# failed states, and files that have changed


def test_reset_failed_ignores_a_unit_that_is_not_loaded(client: Systemd) -> None:
    client.reset_failed(unit("nosuch"))


def test_reset_failed_reports_other_errors(client: Systemd) -> None:
    with pytest.raises(QsysdError, match="Permission denied"):
        client.reset_failed(unit("denied"))


def test_a_unit_that_is_not_loaded_needs_no_reload(client: Systemd, shared_bus: Bus) -> None:
    before = shared_bus.calls().count("Reload")
    assert client.refresh([unit("brandnew"), unit("stale-unloaded")]) is False
    assert shared_bus.calls().count("Reload") == before


def test_a_loaded_unit_without_changes_needs_no_reload(client: Systemd, shared_bus: Bus) -> None:
    shared_bus.load(unit("fresh"))
    before = shared_bus.calls().count("Reload")
    assert client.refresh([unit("fresh")]) is False
    assert shared_bus.calls().count("Reload") == before


def test_stale_units_are_reloaded_once_for_all(bus: Bus) -> None:
    client = Systemd(bus.address)
    for word in ("stale-1", "stale-2", "fresh"):
        bus.load(unit(word))
    units = [unit(word) for word in ("fresh", "stale-1", "stale-2", "unloaded")]
    assert client.refresh(units) is True
    assert bus.calls().count("Reload") == 1
    assert client.refresh(units) is False
    assert bus.calls().count("Reload") == 1


class Marked(Systemd):
    """A systemd of which one unit was enabled since it read its files, so that it calls every unit stale."""

    def __init__(self, folder: Path, *, used: list[str], mark: str) -> None:
        super().__init__("none")
        self.values = {
            "NeedDaemonReload": True,
            "FragmentPath": str(folder / "qemu-vm@.service"),
            "DropInPaths": [str(folder / f"{unit('web1')}.d" / name) for name in used],
            "Environment": [f"QSYSD_DROP_IN={mark}"],
            "UnitsLoadStartTimestamp": 1_000_000_000,
            "UnitsLoadTimestamp": 2_000_000_000,
        }
        self.reloads = 0

    def states(self, units: Iterable[str]) -> dict[str, UnitState]:
        return {name: UnitState(name, "loaded", "inactive", "dead", "/") for name in units}

    def get(self, path: str, interface: str, name: str) -> Any:
        return self.values[name]

    def get_all(self, objects: Sequence[str], interface: str, name: str) -> Sequence[Any]:
        return [self.values[name] for _ in objects]

    def reload(self) -> None:
        self.reloads += 1


@pytest.fixture
def unit_files(tmp_path: Path) -> Path:
    """Give a folder with the files of web1's unit, all of them old."""
    own = tmp_path / f"{unit('web1')}.d"
    own.mkdir()
    (tmp_path / "qemu-vm@.service").touch()
    (own / "50-qsysd.conf").write_text("[Service]\nEnvironment=QSYSD_DROP_IN=1234\n")
    for path in (tmp_path / "qemu-vm@.service", own / "50-qsysd.conf"):
        os.utime(path, (100, 100))
    return tmp_path


def test_a_flag_that_all_units_have_needs_no_reload(unit_files: Path) -> None:
    client = Marked(unit_files, used=["50-qsysd.conf"], mark="1234")
    # When it was written says nothing: systemd may have read it at the unit's first start.
    os.utime(unit_files / f"{unit('web1')}.d" / "50-qsysd.conf")
    assert client.refresh([unit("web1")]) is False
    assert client.reloads == 0


@pytest.mark.parametrize("change", ["another drop-in", "one more", "one less", "template", "own drop-in"])
def test_a_flagged_unit_with_changed_files_needs_a_reload(unit_files: Path, change: str) -> None:
    own = unit_files / f"{unit('web1')}.d"
    used = ["50-qsysd.conf"]
    if change == "another drop-in":
        (own / "50-qsysd.conf").write_text("[Service]\nEnvironment=QSYSD_DROP_IN=5678\n")
    elif change == "one more":
        (own / "90-mine.conf").touch()
    elif change == "one less":
        (own / "50-qsysd.conf").unlink()
    elif change == "template":
        os.utime(unit_files / "qemu-vm@.service")
    else:
        (own / "90-mine.conf").touch()
        used.append("90-mine.conf")
    client = Marked(unit_files, used=used, mark="1234")
    assert client.refresh([unit("web1")]) is True
    assert client.reloads == 1


def test_a_drop_in_in_a_new_directory_needs_a_reload(unit_files: Path) -> None:
    client = Marked(unit_files, used=[], mark="1234")
    # As after `systemctl revert`: it was loaded without, and systemd sees no need for a reload.
    client.values |= {"NeedDaemonReload": False, "Environment": []}
    assert client.refresh([unit("web1")]) is True
    assert client.reloads == 1
    client.values["Environment"] = ["QSYSD_DROP_IN=1234"]
    assert client.refresh([unit("web1")]) is False


# reading


def test_versions(client: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.version() == 252
    monkeypatch.setattr(client, "get", lambda *_: "v257~rc1")
    with pytest.raises(HostError, match="reports no valid version"):
        client.version()


def test_the_loaded_units_are_listed_in_one_call(bus: Bus) -> None:
    client = Systemd(bus.address)
    for number in range(50):
        bus.load(unit(f"many-{number}"))
    before = len(bus.calls())
    states = client.active_units("qemu-vm@many*.service")
    assert len(bus.calls()) == before + 1
    assert len(states) == 50
    state = states[unit("many-7")]
    assert (state.load, state.active, state.sub) == ("loaded", "active", "running")
    assert client.main_pid(state) == 4711


def test_main_processes_are_requested_at_once(bus: Bus) -> None:
    client = Systemd(bus.address)
    bus.load(unit("one"))
    bus.load(unit("two"))
    states = client.active_units("qemu-vm@*.service")
    off = UnitState(unit("two"), "loaded", "inactive", "dead", states[unit("two")].path)
    assert client.main_pids([states[unit("one")], off]) == {unit("one"): 4711}
    assert client.main_pids(states.values()) == {unit("one"): 4711, unit("two"): 4711}
    assert client.main_pids([]) == {}
    gone = UnitState(unit("gone"), "loaded", "active", "running", "/org/freedesktop/systemd1/unit/gone")
    with pytest.raises(QsysdError, match="MainPID: Object does not exist"):
        client.main_pids([gone])


def test_the_limits_of_a_stop(bus: Bus) -> None:
    client = Systemd(bus.address)
    bus.load(unit("props"))
    (plan,) = client.stop_plans([client.state(unit("props"))])
    assert plan.timeout == client.properties(unit("props"))["TimeoutStopUSec"] / 1e6
    assert list(plan.after) == ["network.target"]


def test_no_names_are_no_call(bus: Bus) -> None:
    assert Systemd(bus.address).states([]) == {}
    assert bus.calls() == []


def test_a_unit_that_is_not_loaded_is_off(client: Systemd) -> None:
    state = client.state(unit("nowhere"))
    assert (state.load, state.active, state.sub) == ("not-loaded", "inactive", "dead")
    assert client.main_pid(state) is None


def test_a_service_between_two_processes_has_no_main_pid(bus: Bus) -> None:
    bus.load(unit("off"))
    client = Systemd(bus.address)
    assert client.main_pid(client.state(unit("off"))) is None


def test_properties_are_those_of_unit_and_service(client: Systemd) -> None:
    properties = client.properties(unit("props"))
    assert properties["NeedDaemonReload"] is False
    assert properties["MainPID"] == 4711
    assert bytes(properties["InvocationID"]).hex() == "01ab"
    # no limit at all, as systemd writes it
    assert properties["TimeoutStopUSec"] == 2**64 - 1


def test_no_object_is_introspected(client: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydbus.bus import Bus as PydbusBus

    def introspect(*_: object, **__: object) -> None:
        raise AssertionError("a proxy was made")

    monkeypatch.setattr(PydbusBus, "get", introspect)
    assert start(client, "ok-p") == ["done"]
    client.properties(unit("ok-p"))
    client.active_units("*")


def test_enabling_takes_all_units_in_one_call(client: Systemd, shared_bus: Bus) -> None:
    units = [unit("e1"), unit("e2")]
    client.enable(units)
    client.disable(units)
    calls = [call for call in shared_bus.calls() if "UnitFiles" in call]
    assert calls == [f"EnableUnitFiles {units} False True", f"DisableUnitFiles {units} False"]
    # nothing needs a daemon-reload for it before the next host boot
    assert "Reload" not in shared_bus.calls()

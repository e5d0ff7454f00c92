"""The life of a VM, as docs/architecture.md describes it, on Debian 12 and 13."""

from __future__ import annotations

import json

import pytest
from labtest import TINY, LabHost, tiny_options

from tests.integration.conftest import VMFactory
from tests.integration.helpers import (
    BOOT,
    FROZEN,
    SOON,
    active,
    arguments_of,
    assert_no_force,
    assert_traces,
    at_once,
    console,
    create,
    create_all,
    drop_in,
    edit,
    listed,
    main_pid,
    memory_in_force,
    moment,
    monitor,
    refused,
    status,
    traces,
    unit,
    unit_journal,
    wait_active,
    wait_console,
    wait_ping,
    wait_ready,
)

REFUSED = ("--qemu-arg", "-device", "--qemu-arg", "nonsense")
QEMU_SAYS = "'nonsense' is not a valid device model name"


# starting


def test_create_gives_a_running_guest(any_host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(any_host, name)
    shown = listed(any_host, name)
    assert (shown["active"], shown["sub"], shown["guest"]) == ("active", "running", "running")
    assert shown["pid"] == main_pid(any_host, name)
    assert shown["enabled"] and shown["memory_mib"] == 160 and shown["cpus"] == 1 and shown["image"] is None
    wait_console(any_host, name, f"TINY READY {shown['ip']}")
    any_host.run(["ping", "-c", "1", "-W", "2", shown["ip"]])


def test_refused_option_leaves_nothing(any_host: LabHost, vm: VMFactory) -> None:
    name = vm()
    before = traces(any_host)
    said = refused(any_host, "create", name, *tiny_options(), "--disk", "64M", *REFUSED, status=1)
    assert QEMU_SAYS in said
    assert traces(any_host) == before
    assert "Scheduled restart" not in unit_journal(any_host, name)


def test_refused_option_fails_at_once_without_a_loop(any_host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(any_host, name, options=FROZEN)
    edit(any_host, name, ("\nqemu_args:\n", "\nqemu_args:\n- -device\n- nonsense\n"))
    assert QEMU_SAYS in refused(any_host, "restart", name, status=1)
    assert active(any_host, name) == "failed/failed"
    assert any_host.property(unit(name), "Result") == "exit-code"
    assert any_host.run(["systemctl", "start", unit(name)], check=False).returncode != 0
    assert active(any_host, name) == "failed/failed"
    assert "Scheduled restart" not in unit_journal(any_host, name)
    assert not any_host.exists(f"/sys/class/net/qv-{name}-0")
    # After the option was removed, it starts.
    edit(any_host, name, ("- -device\n- nonsense\n", ""))
    any_host.qsysd("start", name)
    assert active(any_host, name) == "active/running"


def test_a_missing_kernel_prevents_the_start_but_not_the_stop(any_host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(any_host, name)
    wait_ready(any_host, name)
    any_host.sh(f"mv {TINY}/vmlinux {TINY}/away")
    try:
        any_host.systemctl("stop", unit(name))
        assert "TINY POWEROFF" in console(any_host, name)
        assert_no_force(any_host, name)
        assert f"{TINY}/vmlinux: No such file" in refused(any_host, "start", name, status=1)
    finally:
        any_host.sh(f"mv {TINY}/away {TINY}/vmlinux")
    assert not any_host.glob("/sys/class/net/qv*")


# power-off and reboot by the guest, crashes


def test_guest_that_powers_off_stays_off(any_host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(any_host, name, "tiny=poweroff-after=0 tiny=no-network")
    wait_active(any_host, name, "inactive", timeout=BOOT)
    found = any_host.properties(unit(name), "Result", "NRestarts", "Job", "SubState")
    assert (found["Result"], found["NRestarts"], found["SubState"]) == ("success", "0", "dead")
    assert found.get("Job", "") in ("", "0")
    assert listed(any_host, name)["enabled"]
    assert not any_host.glob("/sys/class/net/qv-*")


def test_guest_that_reboots_keeps_its_qemu(any_host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(any_host, name, "tiny=reboot-after=0 tiny=no-network")
    pid = main_pid(any_host, name)
    wait_console(any_host, name, "TINY BOOT", times=2)
    assert main_pid(any_host, name) == pid
    assert active(any_host, name) == "active/running"


def test_killed_qemu_is_restarted(any_host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(any_host, name)
    wait_ready(any_host, name)
    pid = main_pid(any_host, name)
    any_host.sh(f"kill -9 {pid}")

    def back() -> bool:
        shown = listed(any_host, name)
        return shown["pid"] not in (None, pid) and shown["guest"] == "running"

    any_host.wait_until(back, timeout=5, what=f"{name} running again")
    assert status(any_host, name)["restarts"] == 1
    # Console, address and TAP are the same.
    wait_ready(any_host, name, times=2)
    any_host.run(["ping", "-c", "1", "-W", "2", listed(any_host, name)["ip"]])


def test_crash_loop_ends_and_start_resets_it(any_host: LabHost, vm: VMFactory) -> None:
    name = vm()
    folder = drop_in(any_host, name, "[Service]", "RestartSec=50ms", "RestartSteps=0")
    create(any_host, name, options=FROZEN)
    any_host.sh(
        f"""until [ "$(systemctl show -P ActiveState {unit(name)})" = failed ]; do
                pid=$(systemctl show -P MainPID {unit(name)})
                [ "$pid" = 0 ] || kill -9 "$pid" || true
                sleep 0.05
            done"""
    )
    assert active(any_host, name) == "failed/failed"
    shown = status(any_host, name)
    assert (shown["crash_loop"], shown["guest"]) == (True, None)
    assert "crash loop" in any_host.qsysd("status", name).stdout
    any_host.qsysd("start", name)
    assert listed(any_host, name)["guest"] == "prelaunch"
    any_host.sh(f"rm {folder}/90-test.conf")


# stopping


def test_stop_is_graceful_also_early_in_the_boot(any_host: LabHost, vm: VMFactory) -> None:
    one, two, early, paused = (vm(label) for label in ("one", "two", "early", "paused"))
    create_all(any_host, dict.fromkeys((one, two, paused), ()))
    wait_ready(any_host, one, two, paused)
    any_host.qsysd("pause", paused)
    assert listed(any_host, paused)["guest"] == "paused"
    create(any_host, early)
    done = at_once(
        any_host, f"qsysd stop {one}", f"systemctl stop {unit(two)}", f"qsysd stop {early} {paused}"
    )
    assert [code for code, _ in done] == [0, 0, 0], done
    for name in (one, two, early, paused):
        assert active(any_host, name) == "inactive/dead"
        assert "TINY POWEROFF" in console(any_host, name)
        assert any_host.property(unit(name), "Result") == "success"
        assert_no_force(any_host, name)
    assert "already off" in any_host.qsysd("stop", one).stdout


def test_guest_that_ignores_the_button_is_switched_off_alone(any_host: LabHost, vm: VMFactory) -> None:
    deaf, other = vm("deaf"), vm("other")
    create(any_host, deaf, "tiny=ignore-button", options=["--stop-timeout", "8s"])
    create(any_host, other)
    wait_ready(any_host, deaf, other)
    any_host.qsysd("stop", deaf, other)
    assert moment(any_host, other, "Stopped") < moment(any_host, deaf, "Stopped") - 2
    for name in (deaf, other):
        assert active(any_host, name) == "inactive/dead"
        assert any_host.property(unit(name), "Result") == "success"
        assert_no_force(any_host, name)
    # The button was pressed repeatedly, and then QMP quit was sent, so the disks were flushed.
    assert console(any_host, deaf).count("TINY BUTTON") >= 2
    assert "did not power off within 8 s" in unit_journal(any_host, deaf)


def test_stop_is_never_undone_by_a_restart(any_host: LabHost, vm: VMFactory) -> None:
    pausing, stopping = vm("pausing"), vm("stopping")
    drop_in(any_host, pausing, "[Service]", "RestartSec=1h", "RestartSteps=0")
    create_all(any_host, {pausing: (), stopping: ()}, options=["--qemu-arg=-S"])
    any_host.sh(f"kill -9 {main_pid(any_host, pausing)}")
    any_host.wait_property(unit(pausing), "SubState", ("auto-restart", "auto-restart-queued"))
    any_host.qsysd("stop", pausing)
    # A QEMU that is killed during a stop is not restarted.
    any_host.systemctl("stop", "--no-block", unit(stopping))
    wait_active(any_host, stopping, "deactivating")
    any_host.sh(f"kill -9 {main_pid(any_host, stopping)}")
    wait_active(any_host, stopping, ("failed"))
    for name in (pausing, stopping):
        assert active(any_host, name) in ("inactive/dead", "failed/failed")
        assert any_host.property(unit(name), "Job") in ("", "0")
    any_host.qsysd("delete", "--yes", pausing)
    any_host.sh(f"rm -r /etc/systemd/system/{unit(pausing)}.d")


# changing


def test_edit_is_pending_until_restart(any_host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(any_host, name, options=FROZEN)
    assert status(any_host, name)["pending"] == []
    said = edit(any_host, name, ("memory: 160M", "memory: 176M"))
    assert f"qsysd restart {name}" in said
    assert [text.split(":")[0] for text in status(any_host, name)["pending"]] == ["restart"]
    # the value in use, and the pending one
    for verb in ("status", "list"):
        assert "160 MiB (176 MiB pending)" in any_host.qsysd(verb, name).stdout
    accelerator = arguments_of(any_host, main_pid(any_host, name))[2]
    assert f"accelerator {accelerator} in use" in any_host.qsysd("status", name).stdout
    assert memory_in_force(any_host, name) == "size=160M"
    any_host.qsysd("restart", name)
    assert status(any_host, name)["pending"] == []
    assert memory_in_force(any_host, name) == "size=176M"


def test_no_verb_reloads_systemd(any_host: LabHost, vm: VMFactory) -> None:
    one, two = vm("one"), vm("two")
    any_host.systemctl("daemon-reload")
    when = "UnitsLoadTimestampMonotonic"
    read = any_host.systemctl("show", "-P", when)
    create(any_host, one, options=FROZEN)
    create(any_host, two, options=[*FROZEN, "--no-start"])
    any_host.qsysd("disable", one)
    any_host.qsysd("enable", one)
    any_host.qsysd("start", two)
    any_host.qsysd("kill", one)
    any_host.qsysd("start", one)
    any_host.qsysd("restart", one)
    any_host.qsysd("delete", "--yes", one, two)
    assert any_host.systemctl("show", "-P", when) == read


def test_depends_on_orders_start_and_stop_only(any_host: LabHost, vm: VMFactory) -> None:
    first, second = vm("first"), vm("second")
    create(any_host, first, options=[*FROZEN, "--no-start"])
    create(any_host, second, options=[*FROZEN, "--no-start", "--depends-on", first])
    said = any_host.qsysd("start", second).stdout
    assert said == f"{first}: started ({second} depends on it)\n{second}: started\n"
    assert active(any_host, first) == "active/running"
    assert moment(any_host, first, "Started") <= moment(any_host, second, "Starting")
    any_host.qsysd("stop", first, second)
    assert moment(any_host, second, "Stopped") <= moment(any_host, first, "Stopping")
    assert_no_force(any_host, first)
    # Only `qsysd start` starts a dependency, not systemctl or a restart after a crash.
    any_host.systemctl("start", unit(second))
    any_host.sh(f"kill -9 {main_pid(any_host, second)}")
    any_host.wait_property(unit(second), "NRestarts", "1")
    wait_active(any_host, second, "active")
    assert active(any_host, first) == "inactive/dead"


# removing


def test_delete_leaves_nothing(any_host: LabHost, vm: VMFactory) -> None:
    before = traces(any_host)
    running, off = vm("running"), vm("off")
    create(any_host, running, options=["--disk", "64M", "--network", "default", "--network", "default"])
    create(any_host, off, options=["--no-start", "--disk", "64M"])
    wait_ready(any_host, running)
    assert traces(any_host)["leases"]
    said = refused(any_host, "delete", running, off, status=2)
    assert f"/var/lib/qsysd/vms/{running}/disk0.qcow2" in said and "--yes" in said
    assert active(any_host, running) == "active/running"
    any_host.qsysd("delete", "--yes", running, off)
    assert_traces(any_host, before)


def test_fifty_rounds_leave_nothing(host: LabHost) -> None:
    before = traces(host)
    create_command = " ".join(
        ["qsysd create", "$name", *tiny_options()[:-1], "'console=ttyS0 tiny=no-network'"]
    )
    rounds = (
        f"for i in $(seq 25); do {create_command} >/dev/null && qsysd delete --yes $name 2>/dev/null; done"
    )
    done = at_once(host, f"set -e; name=round-a; {rounds}", f"set -e; name=round-b; {rounds}", timeout=300)
    assert [code for code, _ in done] == [0, 0], done
    assert sum(words.count("deleted") for _, words in done) == 50
    assert_traces(host, before)


# the host


def test_host_reboots_and_loses_its_power(any_host: LabHost, vm: VMFactory) -> None:
    host = any_host
    kept, second, deaf, off, done = vm("kept"), vm("second"), vm("deaf"), vm("off"), vm("done")
    create(host, kept)
    create_all(host, {name: ["tiny=ignore-button"] for name in (deaf, off)}, options=["--stop-timeout=3s"])
    create(host, second, options=[*FROZEN, "--depends-on", kept])
    create(host, done, options=FROZEN)
    monitor(host, done, "quit")
    host.qsysd("disable", off)
    wait_ready(host, kept, deaf, off)
    wait_active(host, done, "inactive")
    nics = {name: status(host, name)["nics"] for name in (kept, second, deaf, done)}

    host.reboot()
    before = "--boot=-1"
    assert "TINY POWEROFF" in console(host, kept)
    for name in (kept, second, deaf, off):
        assert_no_force(host, name, before)
    assert moment(host, second, "Stopped", before) <= moment(host, kept, "Stopping", before)
    # In parallel: each guest that ignores the button began to stop before the other one's timeout.
    for one, other in ((deaf, off), (off, deaf)):
        assert moment(host, one, "Stopping", before) < moment(host, other, "Stopped", before)
    # Enabled VMs are started, also the one that had powered itself off.
    for name in nics:
        assert active(host, name) == "active/running"
        shown = status(host, name)
        assert (shown["nics"], shown["pending"], shown["enabled"]) == (nics[name], [], True)
    assert moment(host, kept, "Started") <= moment(host, second, "Starting")
    assert (active(host, off), listed(host, off)["enabled"]) == ("inactive/dead", False)
    wait_ping(host, nics[kept][0]["address"])

    edited_since_boot(host, kept)
    recreated_since_boot(host, deaf)
    crashed(host, kept, vm("writer"))


def edited_since_boot(host: LabHost, name: str) -> None:
    """Change a VM that systemd has in memory since the host's boot, with the drop-in of then."""
    assert host.property(unit(name), "TimeoutStopUSec") == "2min"
    # Newer versions of systemd now report changed files for every unit, but only one has changed.
    host.qsysd("disable", name)
    host.qsysd("enable", name)
    changes = ("memory: 160M", "memory: 176M"), ("stop_timeout: 90s", "stop_timeout: 33s\nqemu_args: [-S]")
    edit(host, name, *changes)
    assert host.property(unit(name), "TimeoutStopUSec") == "1min 3s"
    assert memory_in_force(host, name) == "size=160M"
    host.qsysd("restart", name)
    assert memory_in_force(host, name) == "size=176M"
    assert status(host, name)["pending"] == []


def recreated_since_boot(host: LabHost, name: str) -> None:
    """Delete a VM that systemd has in memory since the host's boot, and make another of its name."""
    uuid = status(host, name)["uuid"]
    host.qsysd("delete", "--yes", name)
    assert host.property(unit(name), "LoadState") == "loaded"
    assert host.property(unit(name), "DropInPaths") == ""
    create(host, name, options=["--qemu-arg=-S", "--stop-timeout=77s", "--memory=192M"])
    assert host.property(unit(name), "TimeoutStopUSec") == "1min 47s"
    assert memory_in_force(host, name) == "size=192M"
    shown = status(host, name)
    assert (shown["pending"], shown["restarts"]) == ([], 0)
    assert shown["uuid"] != uuid


def crashed(host: LabHost, kept: str, writer: str) -> None:
    """Cut the power of the host while a guest writes to its disk."""
    host.sh("truncate -s 16M /root/base.raw")
    host.qsysd("image", "import", "/root/base.raw", "--name", "base", "--no-cloud-init", "--format=raw")
    create(host, writer, "tiny=write-disk tiny=no-network", options=["--image", "base", "--disk", "64M"])
    wait_console(host, writer, "TINY WROTE")
    host.crash()
    for name in (kept, writer):
        assert active(host, name) == "active/running"
    wait_console(host, writer, "TINY WROTE", times=2)
    host.qsysd("kill", writer)
    disk = f"/var/lib/qsysd/vms/{writer}/disk0.qcow2"
    # A crash may leak clusters, but must not corrupt the image.
    found = json.loads(host.sh(f"qemu-img check --output=json {disk} || [ $? = 3 ]"))
    assert found.get("corruptions", 0) == 0 and found["check-errors"] == 0
    host.qsysd("delete", "--yes", writer)
    host.qsysd("image", "rm", "--yes", "base")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> None:
    """Delete all VMs before each test, because tests count VMs."""
    fixture = "any_host" if "any_host" in request.fixturenames else "host"
    host: LabHost = request.getfixturevalue(fixture)
    assert host.qsysd_json("list", timeout=SOON) == []

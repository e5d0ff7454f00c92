"""Faults while VMs run: a clear error, no harm to the guest, and a way to recover."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from labtest import LabHost

from tests.integration.conftest import VMFactory
from tests.integration.helpers import (
    BOOT,
    active,
    assert_no_force,
    console,
    create,
    listed,
    main_pid,
    refused,
    traces,
    unit,
    unit_journal,
    wait_console,
    wait_ready,
)

# Connects to a monitor and stays connected, like a client that hangs.
HOLD = """\
import socket, sys, time
held = socket.socket(socket.AF_UNIX)
held.connect(sys.argv[1])
held.recv(1)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def nothing_left(host: LabHost) -> Iterator[None]:
    """Delete all VMs after the test."""
    yield
    for name in [each["name"] for each in host.qsysd_json("list")]:
        host.qsysd("kill", name, check=False)
        host.qsysd("delete", "--yes", name)


def socket_of(name: str, purpose: str) -> str:
    """Return the path of a VM's monitor."""
    return f"/var/lib/qsysd/vms/{name}/qmp-{purpose}.sock"


@contextmanager
def held(host: LabHost, name: str, *purposes: str) -> Iterator[None]:
    """Keep monitors of a VM connected."""
    holders = [
        host.popen(["python3", "-c", HOLD, socket_of(name, purpose)], stdout=subprocess.PIPE)
        for purpose in purposes
    ]
    try:
        for holder in holders:
            assert holder.stdout and holder.stdout.readline() == "held\n"
        yield
    finally:
        for holder in holders:
            holder.kill()
            holder.wait(10)
            if holder.stdout:
                holder.stdout.close()


# monitors


def test_monitor_in_use_by_another_client(host: LabHost, vm: VMFactory) -> None:
    name, other = vm(), vm("other")
    create(host, name)
    create(host, other, "tiny=no-network")
    wait_ready(host, name)
    with held(host, name, "cli"):
        started = time.monotonic()
        shown = {each["name"]: each["guest"] for each in host.qsysd_json("list")}
        assert time.monotonic() - started < 8
        assert shown == {name: "unknown", other: "running"}
        assert "unknown" in host.qsysd("list", name).stdout
        assert host.qsysd_json("status", name)[0]["active"] == "active"
        for verb in ("pause", "resume", "reset"):
            said = refused(host, verb, name, status=1)
            assert f"{name}: the monitor {socket_of(name, 'cli')} " in said
            assert "another client holds it" in said and "hint: " in said
        host.qsysd("stop", name)
    assert "TINY POWEROFF" in console(host, name)
    assert active(host, name) == "inactive/dead"
    assert_no_force(host, name)


@pytest.mark.parametrize("purposes", [("stop",), ("stop", "ready", "cli")])
def test_stop_while_its_monitor_is_in_use(host: LabHost, vm: VMFactory, purposes: tuple[str, ...]) -> None:
    name, before = vm(), traces(host)
    create(host, name, options=["--stop-timeout", "6s"])
    wait_ready(host, name)
    with held(host, name, *purposes):
        host.qsysd("stop", name)
    assert active(host, name) == "inactive/dead"
    assert "another client holds it" in unit_journal(host, name)
    if len(purposes) == 1:
        assert "TINY POWEROFF" in console(host, name)
        assert_no_force(host, name)
    else:
        assert "QEMU did not exit; systemd terminates it" in unit_journal(host, name)
    host.qsysd("delete", "--yes", name)
    assert traces(host) == before


def test_stale_sockets_do_not_prevent_a_start(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name)
    wait_ready(host, name)
    sockets = host.glob(f"/var/lib/qsysd/vms/{name}/*.sock")
    assert len(sockets) >= 3
    pid = main_pid(host, name)
    host.systemctl("kill", "--signal=STOP", "--kill-who=main", unit(name))
    assert listed(host, name)["guest"] == "unknown"
    host.sh(f"kill -9 {pid}")

    def back() -> bool:
        shown = listed(host, name)
        return shown["pid"] not in (None, pid) and shown["guest"] == "running"

    host.wait_until(back, timeout=20, what=f"{name} running again")
    assert host.glob(f"/var/lib/qsysd/vms/{name}/*.sock") == sockets
    wait_ready(host, name, times=2)
    host.qsysd("stop", name)
    assert active(host, name) == "inactive/dead"
    assert not host.glob(f"/var/lib/qsysd/vms/{name}/*.sock")


def test_verbs_on_a_vm_that_is_off(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name, options=["--no-start"])
    for verb in ("pause", "resume", "reset"):
        said = refused(host, verb, name, status=5)
        assert f"{name} is not running" in said and f"hint: qsysd start {name}" in said
    for verb in ("stop", "kill"):
        assert host.qsysd(verb, name).stdout == f"{name}: already off\n"


# the network


def test_bridge_missing(host: LabHost, vm: VMFactory) -> None:
    name, other = vm(), vm("other")
    create(host, name, options=["--no-start"])
    before = traces(host)
    host.sh("ip link delete qb-default")
    try:
        for words in (["start", name], ["create", other, "--kernel", "/var/lib/tiny/vmlinux"]):
            said = refused(host, *words, status=1)
            assert "network default: its bridge qb-default does not exist" in said
            assert "systemctl restart qsysd-network@default" in said
        assert not host.exists(f"/etc/qsysd/vms/{other}.yaml")
        assert not host.glob("/sys/class/net/qv*")
        assert "qsysd-network@default" in refused(host, "doctor", status=7)
    finally:
        host.systemctl("restart", "qsysd-network@default")
    host.systemctl("reset-failed", unit(name))
    # The rules exist again; the order of the tables does not matter.
    assert {what: sorted(lines) for what, lines in traces(host).items()} == {
        what: sorted(lines) for what, lines in before.items()
    }
    host.qsysd("start", name)
    wait_ready(host, name)


def test_bridge_is_removed_while_a_vm_runs(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name)
    wait_ready(host, name)
    pid = main_pid(host, name)
    host.sh("ip link delete qb-default")
    host.systemctl("restart", "qsysd-network@default")
    assert main_pid(host, name) == pid
    host.qsysd("restart", name)
    wait_ready(host, name, times=2)


# disks


@contextmanager
def small_directory(host: LabHost, name: str, size: str) -> Iterator[str]:
    """Move the files of a VM that is off to a small file system."""
    directory = f"/var/lib/qsysd/vms/{name}"
    host.sh(
        f"mkdir /mnt/small; mount -t tmpfs -o mode=0700,size={size} tmpfs /mnt/small;"
        f"cp -a {directory}/. /mnt/small; mount --move /mnt/small {directory} 2>/dev/null"
        f" || {{ mount --bind /mnt/small {directory}; umount /mnt/small; }}; rmdir /mnt/small"
    )
    try:
        yield directory
    finally:
        host.qsysd("kill", name, check=False)
        host.sh(f"umount {directory}")


def test_full_disk_under_a_guest(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name, "tiny=write-disk tiny=no-network", options=["--disk", "64M", "--no-start"])
    with small_directory(host, name, "24M") as directory:
        host.qsysd("start", name)
        pid = main_pid(host, name)
        host.wait_until(lambda: listed(host, name)["guest"] == "io-error", timeout=BOOT, what="io-error")
        assert "io-error" in host.qsysd("list", name).stdout
        assert "io-error" in host.qsysd("status", name).stdout
        assert (active(host, name), main_pid(host, name)) == ("active/running", pid)
        assert "TINY WRITE FAILED" not in console(host, name)
        # Without free space it is paused again, and nothing is lost.
        host.qsysd("resume", name)
        host.wait_until(lambda: listed(host, name)["guest"] == "io-error", timeout=BOOT, what="io-error")
        host.sh(f"mount -o remount,size=200M {directory}")
        host.qsysd("resume", name)
        assert listed(host, name)["guest"] == "running"
        wait_console(host, name, "TINY WROTE 64")
        assert "TINY WRITE FAILED" not in console(host, name)
        assert (listed(host, name)["guest"], main_pid(host, name)) == ("running", pid)
        host.qsysd("stop", name)
        assert_no_force(host, name)
        host.sh(f"qemu-img check -q {directory}/disk0.qcow2")


def test_disk_missing(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name, options=["--disk", "1M", "--no-start"])
    disk = f"/var/lib/qsysd/vms/{name}/disk0.qcow2"
    host.sh(f"mv {disk} /root/disk0")
    said = refused(host, "start", name, status=1)
    assert disk in said and "No such file" in said and "hint: " in said
    # A link out of the directory is not followed.
    host.sh(f"ln -s /root/disk0 {disk}")
    assert disk in refused(host, "start", name, status=1)
    assert host.sh("stat -c %u /root/disk0") == "0"
    host.sh(f"rm {disk}; mv /root/disk0 {disk}")
    host.qsysd("start", name)

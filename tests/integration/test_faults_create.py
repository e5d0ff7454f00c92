"""Invalid input and faults while VMs are created and deleted: a clear error, and nothing remains."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from labtest import TINY, LabHost, tiny_options

from tests.integration.conftest import VMFactory
from tests.integration.helpers import (
    active,
    at_once,
    create,
    listed,
    main_pid,
    refused,
    status,
    traces,
    unit,
)

KERNEL = ("--kernel", f"{TINY}/vmlinux")
IMAGES = "/var/lib/qsysd/images"
VMS = "/var/lib/qsysd/vms"
BUS = "/run/dbus/system_bus_socket"
ROUNDS = 20  # points in time at which a command is killed, spread over its duration


@pytest.fixture(scope="module", autouse=True)
def used_before(session_host: LabHost) -> None:
    """Create and delete a VM: what remains of the first VM on a host is not a trace of later ones."""
    session_host.up()
    session_host.sh("cd /root; qemu-img create -q -f qcow2 base.qcow2 8M")
    session_host.sh("cd /root; qsysd image import base.qcow2 --name base; rm base.qcow2")
    create(session_host, "first", options=["--image", "base"])
    session_host.qsysd("delete", "--yes", "first")
    session_host.qsysd("image", "rm", "--yes", "base")


@pytest.fixture(autouse=True)
def nothing_left(host: LabHost, used_before: None) -> Iterator[None]:
    """Fail a test that leaves a trace of its VMs, or an intent."""
    before = traces(host)
    yield
    for name in [each["name"] for each in host.qsysd_json("list")]:
        host.qsysd("kill", name, check=False)
        host.qsysd("delete", "--yes", name)
    assert traces(host) == before


def tiny(name: str, *options: str, verb: str = "create") -> str:
    """Return the shell command that creates a VM with the tiny guest."""
    return shlex.join(["qsysd", verb, name, *tiny_options("tiny=no-network"), *options])


@contextmanager
def small(host: LabHost, path: str, options: str) -> Iterator[None]:
    """Mount a small file system on a directory of the host."""
    host.sh(f"mount -t tmpfs -o mode=0755,{options} tmpfs {path}")
    try:
        yield
    finally:
        host.sh(f"umount {path}")


@contextmanager
def away(host: LabHost, path: str) -> Iterator[None]:
    """Move a file of the host away."""
    host.sh(f"mv {path} {path}.away")
    try:
        yield
    finally:
        host.sh(f"mv {path}.away {path}")


# names and definitions


@pytest.mark.parametrize("name", ["Web", "1a", "a.b", "a" * 29, "../x", "-a", "a_b", "a\nb", ""])
def test_bad_name(host: LabHost, name: str) -> None:
    before = traces(host)
    said = refused(host, "create", *KERNEL, "--", name, status=2)
    assert ("error: " in said and "[a-z][a-z0-9-]{0,27}" in said) or "control characters" in said
    assert traces(host) == before


def test_name_taken(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name, "tiny=no-network")
    before, pid = traces(host), main_pid(host, name)
    said = refused(host, "create", name, *tiny_options(), status=4)
    assert f"VM '{name}' already exists" in said and f"hint: qsysd status {name}" in said
    assert (traces(host), main_pid(host, name)) == (before, pid)


def test_existing_files_are_not_overwritten(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    host.write(f"{VMS}/{name}/disk0.qcow2", "precious")
    said = refused(host, "create", name, *tiny_options(), status=4)
    assert f"{VMS}/{name} exists" in said and "hint: " in said
    assert host.read(f"{VMS}/{name}/disk0.qcow2") == "precious"
    host.sh(f"rm -r {VMS}/{name}")


def test_unknown_things(host: LabHost, vm: VMFactory) -> None:
    name, before = vm(), traces(host)
    said = refused(host, "create", name, "--image", "nope", status=3)
    assert "image nope does not exist" in said and "hint: qsysd image " in said
    said = refused(host, "create", name, *KERNEL, "--network", "nope", status=3)
    assert "nope" in said
    said = refused(host, "create", name, *KERNEL, "--depends-on", "nope", status=3)
    assert "depends on 'nope', which does not exist" in said and "hint: create nope first" in said
    assert "file /nope does not exist" in refused(host, "create", name, "--kernel", "/nope", status=2)
    for verb in ("start", "stop", "kill", "restart", "pause", "resume", "status", "show", "ip"):
        assert f"VM '{name}' does not exist" in refused(host, verb, name, status=3)
    assert f"VM '{name}' does not exist" in refused(host, "delete", "--yes", name, status=3)
    assert traces(host) == before


def test_all_errors_of_a_file_at_once(host: LabHost) -> None:
    before = traces(host)
    lines = {
        "name: Bad": "'Bad' is not a name",
        "memoy: 1G": "unknown key 'memoy'; did you mean 'memory'?",
        "memory: 0": "memory: 0 is too little memory",
        "cpus: many": "cpus: 'many' is not a whole number",
        "kernel: 0123": "kernel: ",
        "user: yes": "user: yes is a boolean in YAML, not text; write it in quotes: 'yes'",
        "nics: [{network: default, mac: zz}]": "nics[0].mac: 'zz' is not a MAC address",
        "disks: {}": "disks: must be a list",
    }
    host.write("/root/bad.yaml", "\n".join(lines) + "\n")
    said = refused(host, "create", "--file", "/root/bad.yaml", status=2)
    for number, words in enumerate(lines.values(), 1):
        assert f"/root/bad.yaml:{number}: {words}" in said.replace("name: 'Bad'", "'Bad'"), said
    assert "hint: correct /root/bad.yaml" in said
    host.write("/root/bad.yaml", "name: a\nmemory: [\n")
    said = refused(host, "create", "--file", "/root/bad.yaml", status=2)
    assert "/root/bad.yaml:3: not valid YAML" in said and "hint: " in said
    host.write("/root/bad.yaml", "")
    assert "the file is empty" in refused(host, "create", "--file", "/root/bad.yaml", status=2)
    assert traces(host) == before


def test_memory(host: LabHost, vm: VMFactory) -> None:
    name, before = vm(), traces(host)
    assert "0 is too little memory" in refused(host, "create", name, *KERNEL, "--memory", "0", status=2)
    assert traces(host) == before
    done = host.qsysd("create", name, *KERNEL, "--memory", "9000G", "--no-start")
    assert "the running and enabled VMs have 8.8 TiB of memory, more than this host's" in done.stderr


# images


def test_broken_images(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    script = "cd /root; qemu-img create -q -f qcow2 good.qcow2 8M; qemu-io -c 'write -P 1 0 4M' good.qcow2"
    host.sh(f"{script}; qsysd image import good.qcow2 --name good --no-cloud-init")
    host.sh("cd /root; qemu-img create -q -f qcow2 -b /etc/shadow -F raw foreign.qcow2 8M")
    host.sh("cd /root; head -c 300000 good.qcow2 >cut.qcow2")
    try:
        images = host.glob(f"{IMAGES}/*")
        said = refused(host, "image", "import", "/root/foreign.qcow2", "--name", "foreign", status=2)
        assert "/root/foreign.qcow2 has a backing file, /etc/shadow" in said and "hint: " in said
        said = refused(host, "image", "import", "/root/cut.qcow2", "--name", "cut", status=2)
        assert "/root/cut.qcow2" in said
        said = refused(host, "image", "import", "/root/none.qcow2", "--name", "none", status=2)
        assert "file /root/none.qcow2 does not exist" in said
        assert "image good exists" in refused(
            host, "image", "import", "/root/good.qcow2", "--name", "good", status=4
        )
        assert host.glob(f"{IMAGES}/*") == images
        # So are images that were copied by hand.
        host.sh(f"cd /root; cp foreign.qcow2 cut.qcow2 {IMAGES}; echo text >{IMAGES}/text.qcow2")
        before = traces(host)
        for image, words in {
            "foreign": "has a backing file, /etc/shadow",
            "cut": "is truncated",
            "text": "is not a qcow2 image",
        }.items():
            said = refused(host, "create", name, "--image", image, status=5)
            assert f"image {image} is broken: {IMAGES}/{image}.qcow2 {words}" in said and "hint: " in said
        assert traces(host) == before
        assert "BROKEN" in host.qsysd("image", "list").stdout
        # An image that is damaged while a VM uses it: the start fails until the image is restored.
        host.qsysd("create", name, "--image", "good", "--no-start", "--memory", "64M")
        with away(host, f"{IMAGES}/good.qcow2"):
            assert f"{IMAGES}/good.qcow2" in refused(host, "start", name, status=1)
        assert f"in use by VM {name}" in refused(host, "image", "rm", "good", "--yes", status=5)
        host.qsysd("start", name)
        assert listed(host, name)["guest"] == "running"
        host.qsysd("kill", name)
        host.qsysd("delete", "--yes", name)
    finally:
        host.sh(f"rm -f {IMAGES}/* /root/*.qcow2")


# a full disk, missing parts of the host, an ordinary user


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        (VMS, "size=4k"),
        (VMS, "size=100k"),
        (VMS, "size=300k"),
        (VMS, "nr_inodes=1"),
        ("/etc/qsysd/vms", "size=4k,nr_inodes=2"),
        ("/etc/qsysd/vms", "size=4k"),
        ("/var/lib/qsysd/intents", "nr_inodes=1"),
        ("/var/lib/qsysd/networks/default/hosts.d", "nr_inodes=1"),
    ],
)
def test_full_disk(host: LabHost, vm: VMFactory, folder: str, options: str) -> None:
    name, before = vm(), traces(host)
    with small(host, folder, options):
        disks = ["--disk", "64M", "--disk", "64M"]
        said = refused(host, "create", name, *tiny_options(), *disks, status=1)
        assert "No space left on device" in said and folder in said
        assert "could not be undone" not in said
        assert host.sh(f"ls {folder}") == ""
    assert traces(host) == before
    create(host, name, "tiny=no-network")


def test_qemu_missing(host: LabHost, vm: VMFactory) -> None:
    name, other = vm(), vm("other")
    create(host, name, options=["--no-start"])
    before = traces(host)
    with away(host, "/usr/bin/qemu-system-x86_64"):
        said = refused(host, "create", other, *tiny_options(), status=7)
        assert "qemu-system-x86_64 is not installed" in said
        assert "hint: apt install qemu-system-x86" in said
        said = refused(host, "start", name, status=7)
        assert f"{name} did not start: qemu-system-x86_64 is not installed" in said
        assert "hint: apt install qemu-system-x86" in said
        assert "qemu-system-x86" in refused(host, "doctor", status=7)
    host.systemctl("reset-failed", unit(name))
    assert traces(host) == before
    host.qsysd("start", name)


def test_no_bus(host: LabHost, vm: VMFactory) -> None:
    name, other = vm(), vm("other")
    create(host, name, "tiny=no-network")
    before, pid = traces(host), main_pid(host, name)
    with away(host, BUS):
        for words in (
            ["create", other, *tiny_options()],
            *(["list"], ["start", name], ["stop", name], ["kill", name], ["delete", "--yes", name]),
        ):
            said = refused(host, *words, status=7)
            assert "error: the system bus cannot be reached" in said and "hint: systemctl status dbus" in said
    assert traces(host) == before
    # A crash of the bus does not affect VMs.
    host.systemctl("kill", "--signal=KILL", "dbus.service")
    host.wait_until(
        lambda: host.run(["qsysd", "list"], check=False).returncode == 0, timeout=30, what="a bus"
    )
    assert main_pid(host, name) == pid
    create(host, other, "tiny=no-network")


def test_ordinary_user(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name, "tiny=no-network")
    before, pid = traces(host), main_pid(host, name)
    commands = ["create other --kernel /nope", f"delete --yes {name}", "image import /etc/hosts --name hosts"]
    commands += [f"{verb} {name}" for verb in ("start", "stop", "kill", "restart", "pause", "resume")]
    commands += ["list", *(f"{verb} {name}" for verb in ("status", "show", "reset", "enable", "disable"))]
    for command in commands:
        argv = ["runuser", "-u", "nobody", "--", "qsysd", *command.split()]
        done = host.run(argv, check=False)
        assert done.returncode == 1, (command, done)
        assert "root" in done.stderr and "hint: run the command with sudo" in done.stderr
        assert "Traceback" not in done.stderr
    assert (traces(host), main_pid(host, name)) == (before, pid)


# killed


def took(host: LabHost, command: str) -> float:
    """Run a shell command on a host and return its duration in seconds."""
    start, end = host.sh(f"date +%s.%N; {command} >/dev/null 2>&1; date +%s.%N").splitlines()
    return float(end) - float(start)


def killed(host: LabHost, command: str, seconds: float, *, alone: bool) -> bool:
    """Run a shell command on a host and kill it; alone: not its children. Return whether it was killed."""
    option = "--foreground" if alone else ""
    done = host.run(["sh", "-c", f"timeout {option} -s KILL {seconds:.3f} {command}"], check=False)
    assert done.returncode in (0, 124, 137), done  # 124: it exited at that moment
    return done.returncode == 137


def whole_or_gone(host: LabHost, name: str, before: dict[str, list[str]]) -> bool:
    """Return whether a VM exists; fail if only a part of it exists."""
    if not host.exists(f"/etc/qsysd/vms/{name}.yaml"):
        assert traces(host) == before
        return False
    assert active(host, name) == "active/running"
    shown = status(host, name)
    assert shown["guest"] == "running" and shown["enabled"]
    assert shown["pending"] == [] and shown["problem"] is None
    host.qsysd("render", "--check", name)
    return True


def test_killed_create_is_completed_or_undone(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    # All steps: an overlay, a second disk, a seed, an address, the unit.
    host.sh("cd /root; qemu-img create -q -f qcow2 base.qcow2 8M; qsysd image import base.qcow2 --name base")
    command = tiny(name, "--image", "base", "--disk", "8M", "--disk", "1M")
    whole = took(host, command)
    assert host.exists(f"{VMS}/{name}/seed.iso")
    host.qsysd("delete", "--yes", name)
    before = traces(host)
    cut = notes = 0
    for number in range(1, ROUNDS + 1):
        cut += killed(host, command, whole * number / ROUNDS, alone=bool(number % 2))
        notes += host.exists(f"/var/lib/qsysd/intents/vm.{name}.create.json")
        host.qsysd("recover")
        if whole_or_gone(host, name, before):
            host.qsysd("delete", "--yes", name)
            assert traces(host) == before
    assert cut >= ROUNDS / 2 and notes >= 3, (cut, notes)
    host.sh("qsysd image rm --yes base; rm /root/base.qcow2")


def test_killed_delete_is_completed(host: LabHost, vm: VMFactory) -> None:
    name, before = vm(), traces(host)
    command, delete = tiny(name, "--disk", "1M"), f"qsysd delete --yes {name}"
    host.sh(command)
    whole = took(host, delete)
    cut = notes = 0
    for number in range(1, ROUNDS + 1):
        if not host.exists(f"/etc/qsysd/vms/{name}.yaml"):
            host.sh(command)
        cut += killed(host, delete, whole * number / ROUNDS, alone=bool(number % 2))
        notes += host.exists(f"/var/lib/qsysd/intents/vm.{name}.delete.json")
        host.qsysd("recover")
        whole_or_gone(host, name, before)
    assert cut >= ROUNDS / 2 and notes >= 3, (cut, notes)


def test_next_command_repairs_and_reports_it(host: LabHost, vm: VMFactory) -> None:
    name, other, before = vm(), vm("other"), traces(host)
    note = f"/var/lib/qsysd/intents/vm.{name}.create.json"
    host.sh(f"{tiny(name, '--disk', '1M')} & until [ -e {note} ]; do :; done; kill -9 $!")
    assert host.exists(note)
    # `list` only reports; it changes nothing.
    host.qsysd("list")
    assert host.exists(note)
    said = host.qsysd("create", other, *tiny_options("tiny=no-network")).stderr
    assert f"{name}: a create was killed; the VM was removed" in said
    assert not host.exists(f"/etc/qsysd/vms/{name}.yaml")
    host.qsysd("delete", "--yes", other)
    assert traces(host) == before


# at once


def test_two_commands_on_one_vm(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    done = at_once(host, tiny(name, "--disk", "1M"), tiny(name, "--disk", "2M"))
    assert sorted(code for code, _ in done) == [0, 4], done
    assert any("already exists" in words for _, words in done)
    assert listed(host, name)["guest"] == "running"
    host.qsysd("stop", name)
    done = at_once(host, f"qsysd start {name}", f"qsysd start {name}")
    assert [code for code, _ in done] == [0, 0], done
    assert active(host, name) == "active/running"
    pid = main_pid(host, name)
    done = at_once(host, f"qsysd stop {name}", f"qsysd stop {name}", f"sleep 0.2; qsysd start {name}")
    assert {code for code, _ in done} <= {0, 5} and "Traceback" not in str(done), done
    state = active(host, name)
    assert state in ("active/running", "inactive/dead")
    assert (main_pid(host, name) in (0, pid)) or state == "active/running"
    done = at_once(host, f"qsysd delete --yes {name}", f"qsysd delete --yes {name}")
    assert sorted(code for code, _ in done) == [0, 3], done
    assert not host.exists(f"{VMS}/{name}")


def test_create_while_a_vm_of_the_same_name_is_deleted(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    host.sh(tiny(name))
    done = at_once(host, f"qsysd delete --yes {name}", f"sleep 0.1; {tiny(name)}")
    assert done[0][0] == 0 and done[1][0] in (0, 4), done
    assert host.exists(f"/etc/qsysd/vms/{name}.yaml") == (done[1][0] == 0)


def test_different_vms_at_once(host: LabHost, vm: VMFactory) -> None:
    names = [vm(str(number)) for number in range(4)]
    started = time.monotonic()
    done = at_once(host, *(tiny(name, "--disk", "1M") for name in names))
    assert [code for code, _ in done] == [0] * 4, done
    shown = host.qsysd_json("list", *names)
    assert len({each["ip"] for each in shown}) == 4 and None not in {each["ip"] for each in shown}
    assert len({nic["mac"] for name in names for nic in status(host, name)["nics"]}) == 4
    assert {each["guest"] for each in shown} == {"running"}
    done = at_once(host, *(f"qsysd delete --yes {name}" for name in names))
    assert [code for code, _ in done] == [0] * 4, (done, time.monotonic() - started)
    assert not any(host.exists(f"/etc/systemd/system/{unit(name)}.d") for name in names)

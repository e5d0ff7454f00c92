"""What a VM's QEMU can access on a host, and which of its files others can access."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from labtest import LabHost

from tests.integration.conftest import VMFactory
from tests.integration.helpers import (
    SOON,
    create,
    create_all,
    drop_in,
    edit,
    main_pid,
    refused,
    unit,
    wait_ready,
)

# Run in the mount namespace of a VM's QEMU, as its user: prints the visible names of each path.
LOOK = """\
import json, os, sys
def look(path):
    try:
        return sorted(os.listdir(path)) if os.path.isdir(path) else [open(path, "rb").read(1).hex()]
    except OSError as error:
        return error.strerror
print(json.dumps({path: look(path) for path in sys.argv[1:]}))
"""

# Writes wherever it can, the VM's own directory aside, tries system calls that QEMU does not need, and
# nests directories deeper than Python recurses and than paths reach.
ATTACK = """\
import ctypes, errno, json, os, signal, sys
own = sys.argv[1]
written = {}
for parent, directories, _ in os.walk("/"):
    if parent.startswith(("/proc", "/sys")) or parent == own:
        directories[:] = []
        continue
    for number in range(100):
        try:
            file = os.open(f"{parent}/fill{number}", os.O_CREAT | os.O_WRONLY)
            written[parent] = written.get(parent, 0) + os.write(file, bytes(1 << 20))
            os.close(file)
        except OSError:
            break
libc = ctypes.CDLL(None, use_errno=True)
calls = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "userfaultfd": 323}
tried = {}
for name, number in calls.items():
    failed = libc.syscall(number, 1, ctypes.create_string_buffer(512), 0, 0, 0, 0) < 0
    tried[name] = errno.errorcode[ctypes.get_errno()] if failed else "allowed"
queues = 0
while libc.mq_open(b"/fill%d" % queues, os.O_CREAT | os.O_RDWR, 0o600, None) >= 0:
    queues += 1
below = os.open(own, os.O_RDONLY)
for _ in range(1500):
    os.mkdir("nested", dir_fd=below)
    below, above = os.open("nested", os.O_RDONLY, dir_fd=below), below
    os.close(above)
with open(f"{own}/result.part", "w") as file:
    json.dump({"written": written, "calls": tried, "queues": queues}, file)
os.rename(f"{own}/result.part", f"{own}/result.json")
signal.pause()
"""
# What the program above may have left on the host.
FILLED = "find /run /tmp /var/tmp /dev/shm /dev/mqueue -name 'fill*'"

ARGUMENTS = [
    "plain", "a b", "comma,,comma", "$HOME", "${HOME}", "$$", "%n", "%%", "back\\slash", "trailing\\",
    '"quoted"',
    "'single'", "`tick`", "#hash", ";semi", "*", "~", "\\n", "-append", "tab\there", "é✓", "",
]  # fmt: skip

# Renders the arguments as qsysd does, and lets systemd give them to a process.
ROUND_TRIP = """\
import json, sys
from qsysd import render
arguments = json.loads(sys.argv[1])
with open("/run/round-trip.env", "w") as file:
    file.write("QEMU_ARGS=" + render.env_value(render.words(arguments)) + "\\n")
with open("/run/systemd/system/round-trip.service", "w") as file:
    file.write("[Service]\\nType=oneshot\\nEnvironmentFile=/run/round-trip.env\\n"
               "ExecStart=/usr/bin/python3 /run/round-trip.py $QEMU_ARGS\\n")
with open("/run/round-trip.py", "w") as file:
    file.write("import json, sys\\njson.dump(sys.argv[1:], open('/run/round-trip.json', 'w'))\\n")
"""


def user_of(host: LabHost, pid: int) -> int:
    """Return the user ID of a process."""
    return int(host.sh(f"stat -c %u /proc/{pid}"))


def seen_by(host: LabHost, pid: int, *paths: str) -> dict[str, list[str] | str]:
    """Return what a VM's QEMU sees of paths: the names in a directory, or the error."""
    uid = str(user_of(host, pid))
    enter = ["nsenter", "-t", str(pid), "-m", "-S", uid, "-G", uid, "--"]
    done = host.run([*enter, "/usr/bin/python3", "-I", "-c", LOOK, *paths])
    seen: dict[str, list[str] | str] = json.loads(done.stdout)
    return seen


def test_exposure_is_low(any_host: LabHost, vm: VMFactory) -> None:
    name = vm(on=any_host)
    create(any_host, name)
    found = re.search(
        r"Overall exposure level for \S+: ([0-9.]+)", any_host.sh(f"systemd-analyze security {unit(name)}")
    )
    assert found and float(found[1]) <= 1.4
    # systemd-analyze verify reports nothing for the unit
    verified = any_host.run(["systemd-analyze", "verify", "--man=no", f"qemu-vm@{name}.service"], check=False)
    assert "qemu-vm" not in verified.stderr, verified.stderr


def test_a_unit_has_limits(any_host: LabHost, vm: VMFactory) -> None:
    """Checked as properties, because not every machine has all cgroup controllers."""
    name = vm(on=any_host)
    create(any_host, name, options=("--no-start",))
    edit(any_host, name, ("memory: 160M", "memory: 160M\nmemory_limit: 1G"))
    any_host.qsysd("start", name)
    limits = {"MemoryMax": str(1024**3), "TasksMax": "4096", "LimitNOFILE": "8192", "LimitMSGQUEUE": "0"}
    assert any_host.properties(unit(name), *limits) == limits


def test_two_vms_do_not_see_each_other(any_host: LabHost, vm: VMFactory) -> None:
    one, two = vm("one", on=any_host), vm("two", on=any_host)
    create_all(any_host, {one: (), two: ()}, options=("--disk", "8M"))
    pids = [main_pid(any_host, name) for name in (one, two)]
    users = [user_of(any_host, pid) for pid in pids]
    assert len(set(users)) == 2 and 0 not in users
    seen = seen_by(
        any_host, pids[0], "/var/lib/qsysd", "/var/lib/qsysd/vms", f"/var/lib/qsysd/vms/{one}",
        f"/var/lib/qsysd/vms/{two}", "/run/qsysd", "/run/qsysd/vms", f"/run/qsysd/vms/{one}",
        "/etc", "/run/dbus", "/run/systemd/private", "/root", "/home", "/var/lib",
    )  # fmt: skip
    # a separate root directory with few files
    assert set(seen["/etc"]) == {"ld.so.cache", "localtime"}
    assert set(seen["/var/lib"]) == {"qsysd", "tiny"}
    assert seen["/root"] == [] and seen["/home"] == "No such file or directory"
    assert seen["/var/lib/qsysd"] == ["images", "vms"]
    assert seen["/var/lib/qsysd/vms"] == [one]
    assert "disk0.qcow2" in seen[f"/var/lib/qsysd/vms/{one}"]
    assert seen["/run/qsysd"] == ["vms"]
    assert seen["/run/qsysd/vms"] == [one]
    assert seen[f"/run/qsysd/vms/{one}"] == []
    assert "qmp-cli.sock" in seen[f"/var/lib/qsysd/vms/{one}"]
    for path in (f"/var/lib/qsysd/vms/{two}", "/run/dbus", "/run/systemd/private"):
        assert seen[path] == "No such file or directory", path
    # no capabilities
    status = any_host.read(f"/proc/{pids[0]}/status")
    for field in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert re.search(rf"^{field}:\s*0+$", status, re.MULTILINE), field
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)


def test_only_the_vms_own_files_can_be_written(any_host: LabHost, vm: VMFactory) -> None:
    name = vm(on=any_host)
    create(any_host, name, options=("--disk", "8M"))
    mounts = [
        line.split() for line in any_host.read(f"/proc/{main_pid(any_host, name)}/mountinfo").splitlines()
    ]
    # proc(5): field 5 is the mount point, field 6 the options
    writable = {fields[4] for fields in mounts if "ro" not in fields[5].split(",")}
    own = f"/var/lib/qsysd/vms/{name}"
    assert own in writable
    # what is the kernel's
    for place in writable - {own}:
        assert f"{place}/".startswith(("/dev/", "/proc/", "/sys/")), place


def test_a_compromised_qemu_cannot_fill_the_host_and_can_be_deleted(any_host: LabHost, vm: VMFactory) -> None:
    """A program of the attacker runs instead of QEMU, in the sandbox."""
    name = vm(on=any_host)
    directory = f"/var/lib/qsysd/vms/{name}"
    program = ("/usr/bin/python3", "-I", f"{directory}/attack.py", directory)
    folder = drop_in(
        any_host, name, "[Service]", "ExecStart=", f"ExecStart={shlex.join(program)}", "ExecStartPost="
    )
    create(any_host, name, options=("--no-start",))
    any_host.write(f"{directory}/attack.py", ATTACK)
    mounts = (f"/run/qsysd/roots/{name}/mnt", f"{directory}/data")
    try:
        any_host.systemctl("start", unit(name))
        any_host.wait_until(
            lambda: any_host.exists(f"{directory}/result.json"), timeout=SOON, what="the end of the attack"
        )
        found = json.loads(any_host.read(f"{directory}/result.json"))
        assert found["written"] == {}, found
        assert found["queues"] == 0
        assert found["calls"] == dict.fromkeys(found["calls"], "EPERM")
        assert any_host.sh(FILLED) == ""
        # mounts below the VM's root and directory are kept by its stop and its deletion
        for place in mounts:
            any_host.sh(f"mkdir {place} && mount -t tmpfs tmpfs {place} && touch {place}/precious")
        any_host.qsysd("kill", name)
        said = refused(any_host, "delete", "--yes", name, status=5)
        assert f"{directory}/data is a mount point" in said and f"umount {directory}/data" in said
        for place in mounts:
            assert any_host.exists(f"{place}/precious")
            any_host.sh(f"umount {place}")
        any_host.qsysd("delete", "--yes", name)
        assert not any_host.exists(directory)
        assert not any_host.exists(f"/run/qsysd/roots/{name}")
    finally:
        any_host.sh(f"umount -q {' '.join(mounts)} || true")
        any_host.systemctl("kill", "--signal=KILL", unit(name), check=False)
        any_host.sh(f"rm -r {folder}")


def test_a_kernel_in_a_private_directory_is_mounted_alone(any_host: LabHost, vm: VMFactory) -> None:
    name = vm(on=any_host)
    any_host.sh("mkdir -m 0700 /root/closed && cp /var/lib/tiny/vmlinuz /var/lib/tiny/initrd /root/closed/")
    try:
        kernel = ("--kernel", "/root/closed/vmlinuz", "--initrd", "/root/closed/initrd")
        any_host.qsysd("create", name, *kernel, "--append", "console=ttyS0", "--memory", "160M")
        wait_ready(any_host, name)
        seen = seen_by(any_host, main_pid(any_host, name), "/root", "/root/closed")
        assert seen == {"/root": ["closed"], "/root/closed": ["initrd", "vmlinuz"]}
        any_host.qsysd("delete", "--yes", name)
        assert not any_host.exists(f"/run/qsysd/roots/{name}")
    finally:
        any_host.sh("rm -r /root/closed")


def test_other_users_access_nothing(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name, options=("--disk", "8M"))
    paths = [
        f"/var/lib/qsysd/vms/{name}/qmp-cli.sock", f"/var/lib/qsysd/vms/{name}/console.sock",
        f"/var/lib/qsysd/vms/{name}/disk0.qcow2", f"/var/lib/qsysd/vms/{name}/console.log",
        f"/etc/qsysd/vms/{name}.yaml", f"/etc/qsysd/vms/{name}.env", "/etc/qsysd/ssh/id_ed25519",
        "/var/lib/qsysd/intents",
    ]  # fmt: skip
    for path in paths:
        assert host.exists(path), path
        for mode in ("-r", "-w"):
            tried = host.run(["runuser", "-u", "nobody", "--", "test", mode, path], check=False)
            assert tried.returncode == 1, (mode, path)


def test_directory_belongs_to_root_after_the_stop(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name, options=("--disk", "8M"))
    directory = f"/var/lib/qsysd/vms/{name}"
    owners = f"find {directory} -printf '%u\\n' | sort -u"
    assert host.sh(owners).split() != ["root"]
    host.qsysd("kill", name)
    assert host.sh(owners).split() == ["root"]


def test_link_instead_of_a_socket_is_not_followed(host: LabHost, vm: VMFactory) -> None:
    """A compromised QEMU replaces its monitor by a link to another VM's: root does not follow it."""
    bad, good = vm("bad"), vm("good")
    create_all(host, {bad: (), good: ()})
    wait_ready(host, bad, good)
    for purpose in ("cli", "stop", "ready"):
        own, other = (f"/var/lib/qsysd/vms/{name}/qmp-{purpose}.sock" for name in (bad, good))
        host.sh(f"ln -sf {other} {own}")
    console = f"/var/lib/qsysd/vms/{bad}/console.sock"
    host.sh(f"ln -sf /var/lib/qsysd/vms/{good}/console.sock {console}")
    refused = host.qsysd("pause", bad, check=False)
    assert refused.returncode == 1 and "is not that of process" in refused.stderr
    refused = host.qsysd("console", bad, check=False)
    assert refused.returncode == 1 and "does not belong to QEMU" in refused.stderr
    # the stop falls back to its timeout and SIGTERM, and does not press another VM's button
    host.sh(f"timeout 5 systemctl stop {unit(bad)} || true")
    host.qsysd("kill", bad)
    listed = {each["name"]: each for each in host.qsysd_json("list")}
    assert listed[good]["guest"] == "running" and listed[bad]["active"] != "active"


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_arguments_reach_the_process_unchanged(suite: str, request: pytest.FixtureRequest) -> None:
    host: LabHost = request.getfixturevalue({"bookworm": "host", "trixie": "trixie_host"}[suite])
    host.run(["/usr/bin/python3", "-c", ROUND_TRIP, json.dumps(ARGUMENTS)])
    try:
        host.sh("systemctl daemon-reload && systemctl start round-trip.service")
        assert json.loads(host.read("/run/round-trip.json")) == ARGUMENTS
    finally:
        host.sh("rm -f /run/round-trip.* /run/systemd/system/round-trip.service; systemctl daemon-reload")


def test_option_with_special_characters_reaches_qemu(host: LabHost, vm: VMFactory) -> None:
    """A value with characters that are special to shells, systemd and QEMU."""
    name = vm()
    words = 'root="a b",c $HOME %n \\x `id` #'
    host.qsysd("create", name, "--kernel", "/var/lib/tiny/vmlinuz", "--append", words, "--memory", "160M")
    line = host.sh(
        f"tr '\\0' '\\n' < /proc/{main_pid(host, name)}/cmdline | grep -A1 -x -e -append | tail -1"
    )
    assert line.rstrip("\n") == words, shlex.quote(line)

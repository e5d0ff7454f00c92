"""The command that units run: its arguments, privileges, and directories with unexpected files."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from unit_steps import (
    GID,
    UID,
    VM,
    owners,
    plant_dangling,
    plant_directory,
    plant_fifo,
    plant_hard_link,
    plant_link_to_directory,
    plant_socket,
    plant_symlink,
)

from qsysd.errors import HostError, InvalidError
from qsysd.paths import Scope
from qsysd.runtime import (
    console_logs,
    helper,
    readiness,
    shutdown,
    vm_directory,
)

# the owner of a VM's directory


def test_a_vms_directory_and_its_files_get_the_owner(directory: Path) -> None:
    (directory / "seed.iso").touch()
    directory.chmod(0o755)
    vm_directory.set_owner(str(directory), UID, GID)
    assert owners(directory) == {(UID, GID)}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert (directory / "disk0.qcow2").read_bytes() == b"disk"


def test_setting_the_owner_twice_changes_nothing(directory: Path) -> None:
    for _ in range(2):
        vm_directory.set_owner(str(directory), UID, GID)
    assert owners(directory) == {(UID, GID)}


@pytest.mark.parametrize(
    "plant",
    [plant_symlink, plant_dangling, plant_hard_link, plant_fifo, plant_directory, plant_link_to_directory],
)
@pytest.mark.parametrize("name", ["console.log", "disk1.qcow2", ".hidden", "a\nb", "\udcff"])
def test_files_that_a_compromised_qemu_left_are_refused_and_not_followed(
    directory: Path, tmp_path: Path, plant: Callable[[Path, Path], None], name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"root's")
    victim.chmod(0o600)
    plant(directory / name, victim)
    before = victim.stat()
    with pytest.raises(HostError) as caught:
        vm_directory.set_owner(str(directory), UID, GID)
    assert str(directory) in caught.value.message
    assert caught.value.message.isprintable()  # it goes to the journal, and QEMU chose the name
    after = victim.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    # the directory itself comes last, so QEMU's user has no access before its contents are checked
    assert directory.stat().st_uid == os.getuid()


def test_sockets_of_a_qemu_that_has_exited_are_removed(directory: Path) -> None:
    for name in ("qmp-stop.sock", "another"):
        plant_socket(directory / name, directory)
    vm_directory.set_owner(str(directory), UID, GID)
    assert os.listdir(directory) == ["disk0.qcow2"]


@pytest.mark.needs_root
def test_a_device_is_refused(directory: Path) -> None:
    os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(HostError, match="not a plain file"):
        vm_directory.set_owner(str(directory), UID, GID)


def test_a_link_in_place_of_the_directory_is_refused(directory: Path, scope: Scope) -> None:
    Path(scope.vm_dir("web2")).symlink_to(directory.absolute())
    with pytest.raises(HostError):
        vm_directory.set_owner(scope.vm_dir("web2"), UID, GID)
    with pytest.raises(HostError):
        vm_directory.set_owner(scope.vm_dir("web3"), UID, GID)


# privileges


def as_root(program: str) -> list[str]:
    """Run a Python program in a separate process, which changes its user; return its lines of output."""
    package = Path(helper.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(package), "MAINPID": str(os.getpid())},
        extra_groups=[1, 4],
    )
    return done.stdout.splitlines()


@pytest.mark.needs_root
def test_dropped_privileges_can_be_restored_unless_permanently_dropped(scope: Scope) -> None:
    os.makedirs(scope.runtime(VM))
    os.chown(scope.runtime(VM), UID, GID)
    program = (
        "import os\n"
        "from qsysd import paths\n"
        "from qsysd.runtime.privileges import drop_privileges, restore_privileges\n"
        "def show():\n"
        "    status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "    print(os.getresuid(), os.getresgid(), os.getgroups())\n"
        "    print(*(int(status[name], 16) for name in ('CapEff', 'CapPrm')))\n"
        f"drop_privileges(paths.Scope(''), {VM!r})\n"
        "show()\n"
        "restore_privileges()\n"
        "show()\n"
        f"drop_privileges(paths.Scope(''), {VM!r}, permanently=True)\n"
        "show()\n"
        "restore_privileges()\n"
        "show()\n"
    )
    user, user_can, root, root_can, for_good, can_no_more, still, still_can = as_root(program)
    # the real and the saved user remain root: QEMU's user can neither signal nor trace the process
    assert user == f"{(0, UID, 0)} {(0, GID, 0)} []"
    assert user_can.split()[0] == "0"
    assert root == f"{(0,) * 3} {(0,) * 3} []"
    assert root_can.split()[0] != "0"
    assert for_good == still == f"{(UID,) * 3} {(GID,) * 3} []"
    assert can_no_more == still_can == "0 0"


@pytest.mark.needs_root
def test_qemus_sockets_are_connected_to_as_its_user(scope: Scope) -> None:
    os.makedirs(scope.runtime(VM))
    os.chown(scope.runtime(VM), UID, GID)
    steps = as_root(
        "import os\n"
        "from qsysd.paths import Scope\n"
        "from qsysd.runtime import cleanup, monitors, readiness, shutdown\n"
        "def show(step, result):\n"
        "    print(step, os.getresuid(), os.getresgid(), os.getgroups())\n"
        "    return result\n"
        "class Connection:\n"
        "    __enter__ = lambda self: self\n"
        "    __exit__ = lambda self, *_: None\n"
        "    execute = lambda self, _: show('execute', b'')\n"
        "class Monitors:\n"
        "    def __init__(self, *_):\n"
        "        show('open', None)\n"
        "    connect = lambda self, *_: show('connect', Connection())\n"
        "readiness.Monitors = monitors.Monitors = Monitors\n"
        "shutdown.power_off = lambda *_: show('power off', True)\n"
        "cleanup.after_stop = lambda *_: show('clean up', None)\n"
        f"shutdown.stop(Scope(''), {VM!r})\n"
        f"readiness.ready(Scope(''), {VM!r})\n"
    )
    root = f"{(0,) * 3} {(0,) * 3}"
    user = f"{(UID,) * 3} {(GID,) * 3} []"
    assert steps == [
        f"open {root} [1, 4]",
        f"power off {(0, UID, 0)} {(0, GID, 0)} []",
        f"clean up {root} []",
        f"open {root} []",
        f"connect {user}",
        f"execute {user}",
    ]


# console logs


def test_a_long_console_log_is_cut_to_its_last_part(
    directory: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_logs, "SIZE_MAX", 1000)
    monkeypatch.setattr(console_logs, "SIZE_KEPT", 100)
    log = directory / "console.log"
    log.write_bytes(b"a" * 950 + b"b" * 100)
    with log.open("ab") as qemus:
        console_logs.trim(scope)
        qemus.write(b"new")
    assert log.read_bytes() == b"b" * 100 + b"new"
    console_logs.trim(scope)
    assert log.stat().st_size == 103


def test_a_log_that_cannot_be_cut_does_not_prevent_others_from_being_cut(
    directory: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_logs, "SIZE_MAX", 1000)
    monkeypatch.setattr(console_logs, "SIZE_KEPT", 100)
    other = Path(scope.vm_dir("web2"))
    other.mkdir()
    for place in (directory, other):
        (place / "console.log").write_bytes(b"a" * 2000)

    def full(file: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    console_logs.trim(scope)
    assert [(place / "console.log").stat().st_size for place in (directory, other)] == [0, 0]


@pytest.mark.parametrize(
    "plant",
    [plant_symlink, plant_dangling, plant_hard_link, plant_fifo, plant_directory, plant_link_to_directory],
)
def test_only_a_regular_file_is_cut_as_console_log(
    directory: Path,
    scope: Scope,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Path, Path], None],
) -> None:
    monkeypatch.setattr(console_logs, "SIZE_MAX", 10)
    monkeypatch.setattr(console_logs, "SIZE_KEPT", 1)
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * 100)
    plant(directory / "console.log", victim)
    console_logs.trim(scope)
    assert victim.read_bytes() == b"x" * 100


# the command


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["stop"],
        ["stop", "web1", "x"],
        ["stop", "../x"],
        ["stop", "Web1"],
        ["stop", ""],
        ["stop", "web1\n"],
        ["dance", "web1"],
    ],
)
def test_invalid_arguments_are_a_usage_error(arguments: list[str]) -> None:
    assert helper.main(arguments) == InvalidError.code


def test_an_error_is_one_line_and_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    def fail(scope: Scope, vm: str) -> None:
        raise HostError("no bridge", hint="make one")

    monkeypatch.setattr(shutdown, "stop", fail)
    assert helper.main(["stop", "web1"]) == 7
    assert journal() == ["no bridge (make one)"]


@pytest.mark.parametrize(("answers", "status"), [(True, 0), (False, 1)])
def test_a_qemu_that_exits_before_it_answers_fails_the_start_without_another_line(
    monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]], answers: bool, status: int
) -> None:
    """QEMU's own error is then the last line in the journal."""
    monkeypatch.setattr(readiness, "ready", lambda scope, vm: answers)
    assert helper.main(["ready", "web1"]) == status
    assert journal() == []

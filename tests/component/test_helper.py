"""What a unit calls, against guests that do not obey and directories that hold what they should not."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wire
from qmp_peer import Connection, Peer, Refuse, Script

from qsysd.errors import HostError, InvalidError, QsysdError, TimeoutExpired
from qsysd.paths import Scope
from qsysd.runtime import helper, roots
from qsysd.store import Started, Store

VM = "web1"
# root tries with somebody else's uid, everybody else with their own
UID, GID = (12345, 54321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
FOREVER = 3600.0


class StandIn:
    """A process in QEMU's place, and its monitors: what they answer is the test's, when it ends too."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.process = subprocess.Popen(["sleep", "1000"])
        self.stack = contextlib.ExitStack()
        self.peers: dict[str, Peer] = {}

    def end(self) -> dict[str, object]:
        """End as QEMU does when the guest is off; for use as an answer."""
        self.process.kill()
        self.process.wait()
        return {}

    def monitor(self, script: Script, *purposes: str) -> Peer:
        """Serve monitors by a script; return the last one."""
        for purpose in purposes:
            peer = Peer(self.scope.monitor(VM, purpose), script)
            self.peers[purpose] = self.stack.enter_context(peer)
        return self.peers[purposes[-1]]

    def obedient(self, **answers: object) -> dict[str, object]:
        """Return the answers of a guest that powers off when it is asked to."""
        return {
            "query-status": {"status": "running"},
            "system_powerdown": self.end,
            "quit": self.end,
            **answers,
        }

    def commands(self) -> list[str]:
        """Return what all monitors were told, the negotiation aside."""
        return [
            name
            for peer in self.peers.values()
            for name in peer.commands
            if name not in ("qmp_capabilities", "query-status")
        ]

    def is_running(self) -> bool:
        """Tell whether the process has not ended."""
        return self.process.poll() is None


@pytest.fixture
def qemu(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Start a process for QEMU, with its variables as systemd sets them."""
    stand_in = StandIn(scope)
    os.makedirs(scope.vm_dir(VM))
    monkeypatch.setenv("MAINPID", str(stand_in.process.pid))
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "60")
    monkeypatch.setattr(helper, "PRESS_INTERVAL", 0.05)
    # the peers' sockets are this user's: nobody else has to be become
    monkeypatch.setattr(helper, "become_user", lambda scope, vm: None)
    monkeypatch.setattr(helper, "forget_root", lambda: None)
    try:
        with stand_in.stack:
            yield stand_in
            stand_in.process.kill()
    finally:
        stand_in.process.kill()
        stand_in.process.wait()


@pytest.fixture
def journal(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Return the lines that the helper has written to the journal since the last call."""
    return lambda: capfd.readouterr().err.splitlines()


# stop


def test_a_guest_that_obeys(qemu: StandIn, scope: Scope, journal: Callable[[], list[str]]) -> None:
    qemu.monitor(lambda connection: connection.serve(qemu.obedient()), "stop")
    roots.make(scope.root_dir(VM))
    helper.stop(scope, VM)
    assert qemu.commands() == ["system_powerdown"]
    assert not qemu.is_running()
    assert journal() == []
    # and nothing is left for after-stop
    assert not os.path.exists(scope.root_dir(VM))


def test_a_guest_that_hears_only_the_third_press(qemu: StandIn, scope: Scope) -> None:
    pressed: list[int] = []

    def press() -> dict[str, object]:
        pressed.append(1)
        return qemu.end() if len(pressed) == 3 else {}

    qemu.monitor(lambda connection: connection.serve(qemu.obedient(system_powerdown=press)), "stop")
    helper.stop(scope, VM)
    assert qemu.commands() == ["system_powerdown"] * 3
    assert not qemu.is_running()


def test_a_guest_that_ignores_the_button_is_told_to_quit_at_its_time_out(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "1")
    qemu.monitor(lambda connection: connection.serve(qemu.obedient(system_powerdown={})), "stop")
    helper.stop(scope, VM)
    commands = qemu.commands()
    assert commands.count("system_powerdown") > 2
    assert commands[-1] == "quit"
    assert not qemu.is_running()
    assert journal() == ["the guest did not power off within 1 s; QEMU is told to quit"]


@pytest.mark.parametrize(
    ("state", "first"),
    [("paused", "cont"), ("io-error", "cont"), ("prelaunch", "cont"), ("suspended", "system_wakeup"),
    ("running", None),
     ("guest-panicked", None)],
)  # fmt: skip
def test_a_guest_that_cannot_hear_is_woken_first(
    qemu: StandIn, scope: Scope, state: str, first: str | None
) -> None:
    answers = qemu.obedient(**{"query-status": {"status": state}, "cont": {}, "system_wakeup": {}})
    qemu.monitor(lambda connection: connection.serve(answers), "stop")
    helper.stop(scope, VM)
    assert qemu.commands() == [*([first] if first else []), "system_powerdown"]


def test_a_guest_that_cannot_go_on_is_told_to_quit(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    def refuse() -> None:
        raise Refuse("Resetting the Virtual Machine is required")

    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "1")
    answers = qemu.obedient(**{"query-status": {"status": "paused"}, "cont": refuse})
    qemu.monitor(lambda connection: connection.serve(answers), "stop", "ready", "cli")
    helper.stop(scope, VM)
    assert "quit" in qemu.commands()
    assert "cont: Resetting the Virtual Machine is required" in journal()
    assert not qemu.is_running()


@pytest.mark.parametrize("first", ["busy", "garbage", "silent", "closed", "missing"])
def test_a_monitor_that_is_of_no_use_is_passed_over(qemu: StandIn, scope: Scope, first: str) -> None:
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
    helper.stop(scope, VM)
    released.set()
    assert second.commands[-1] == "system_powerdown"
    assert not qemu.is_running()


def test_no_monitor_at_all_leaves_qemu_to_systemd(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "1")
    helper.stop(scope, VM)
    assert qemu.is_running()
    assert journal()[-1] == "QEMU does not quit; systemd ends it"


def test_a_qemu_that_does_not_quit_is_left_to_systemd(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "0")
    monkeypatch.setattr(helper, "QUIT_TIMEOUT", 0.1)
    qemu.monitor(lambda connection: connection.serve({"quit": {}}), "stop")
    roots.make(scope.root_dir(VM))
    helper.stop(scope, VM)
    assert qemu.commands() == ["quit"]
    assert journal()[-1] == "QEMU does not quit; systemd ends it"
    # what a running QEMU needs is still there, and after-stop sees that there is something to do
    assert os.path.exists(scope.root_dir(VM))


def test_a_qemu_that_goes_in_the_middle_of_a_press(qemu: StandIn, scope: Scope) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        connection.receive()
        qemu.end()

    qemu.monitor(script, "stop")
    helper.stop(scope, VM)
    assert not qemu.is_running()


def test_events_do_not_distract_a_stop(qemu: StandIn, scope: Scope) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        for _ in range(2000):
            connection.event("RTC_CHANGE", offset=1)
        while connection.answer_one(qemu.obedient()):
            connection.event("POWERDOWN")

    qemu.monitor(script, "stop")
    helper.stop(scope, VM)
    assert not qemu.is_running()


@pytest.mark.parametrize("pid", ["", "0x1", "-1", "none"])
def test_there_is_nothing_to_stop_when_qemu_went_by_itself(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, pid: str, journal: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("MAINPID", pid)
    roots.make(scope.root_dir(VM))
    helper.stop(scope, VM)
    assert journal() == []
    assert not os.path.exists(scope.root_dir(VM))


def test_a_pid_that_is_gone_is_quiet(qemu: StandIn, scope: Scope, journal: Callable[[], list[str]]) -> None:
    qemu.end()
    helper.stop(scope, VM)
    assert journal() == []


@pytest.mark.parametrize("timeout", ["", "x", "-1", "1.5", "9999999", "1\n", "\uff11"])
def test_an_odd_time_out_is_refused(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, timeout: str
) -> None:
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", timeout)
    with pytest.raises(InvalidError, match="QSYSD_STOP_TIMEOUT"):
        helper.stop(scope, VM)


# ready


def test_a_qemu_is_ready_when_its_main_loop_answers(qemu: StandIn, scope: Scope) -> None:
    answers = {"query-status": {"status": "running"}}
    peer = qemu.monitor(lambda connection: connection.serve(answers), "ready")
    helper.ready(scope, VM)
    assert peer.commands == ["qmp_capabilities", "query-status"]


def test_a_socket_that_comes_late_and_listens_later(qemu: StandIn, scope: Scope) -> None:
    path = scope.monitor(VM, "ready")

    def begin() -> None:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
        os.unlink(path)
        qemu.monitor(lambda connection: connection.serve({"query-status": {}}), "ready")

    timer = threading.Timer(0.1, begin)
    timer.start()
    helper.ready(scope, VM)
    timer.join()


def test_a_qemu_that_refuses_its_options_is_not_ready(qemu: StandIn, scope: Scope) -> None:
    qemu.end()
    with pytest.raises(QsysdError, match="exited before it answered"):
        helper.ready(scope, VM)


def test_a_qemu_that_ends_while_it_is_asked_is_not_ready(qemu: StandIn, scope: Scope) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        connection.receive()
        qemu.end()

    qemu.monitor(script, "ready")
    with pytest.raises(QsysdError, match="exited before it answered"):
        helper.ready(scope, VM)


@pytest.mark.parametrize("what", ["no socket", "no greeting", "no answer", "garbage"])
def test_a_qemu_that_hangs_is_not_ready(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(helper, "READY_TIMEOUT", 0.3)

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
        helper.ready(scope, VM)
    assert isinstance(caught.value, TimeoutExpired) is (what in ("no socket", "garbage"))


def test_without_a_process_nothing_is_ready(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAINPID", raising=False)
    with pytest.raises(QsysdError, match="already ended"):
        helper.ready(scope, VM)


# an upgrade


def test_a_vm_that_an_earlier_version_started_is_ready_and_stops(qemu: StandIn, scope: Scope) -> None:
    """Its sockets are in the unit's RuntimeDirectory."""
    for purpose in ("ready", "stop"):
        path = scope.earlier_socket(VM, scope.monitor(VM, purpose))
        assert path == f"run/qsysd/vms/{VM}/qmp-{purpose}.sock"
        peer = Peer(path, lambda connection: connection.serve(qemu.obedient()))
        qemu.peers[purpose] = qemu.stack.enter_context(peer)
    helper.ready(scope, VM)
    helper.stop(scope, VM)
    assert qemu.commands() == ["system_powerdown"]
    assert not qemu.is_running()


# before start: the directory


@pytest.fixture
def directory(scope: Scope) -> Path:
    """Return a VM's directory with a disk in it, as `create` leaves it."""
    path = Path(scope.vm_dir(VM))
    path.mkdir(parents=True, exist_ok=True)
    (path / "disk0.qcow2").write_bytes(b"disk")
    (path / "disk0.qcow2").chmod(0o600)
    return path


def owners(path: Path) -> set[tuple[int, int]]:
    """Return the owners of a directory and all in it."""
    return {(entry.lstat().st_uid, entry.lstat().st_gid) for entry in [path, *path.iterdir()]}


def test_the_directory_and_its_files_are_handed_over(directory: Path) -> None:
    (directory / "seed.iso").touch()
    directory.chmod(0o755)
    helper.own(str(directory), UID, GID)
    assert owners(directory) == {(UID, GID)}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert (directory / "disk0.qcow2").read_bytes() == b"disk"


def test_a_second_time_changes_nothing(directory: Path) -> None:
    for _ in range(2):
        helper.own(str(directory), UID, GID)
    assert owners(directory) == {(UID, GID)}


def _symlink(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling(path: Path, victim: Path) -> None:
    path.symlink_to("nowhere")


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, victim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def _directory(path: Path, victim: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


def _link_to_directory(path: Path, victim: Path) -> None:
    path.symlink_to(victim.parent)


@pytest.mark.parametrize("plant", [_symlink, _dangling, _hard_link, _fifo, _directory, _link_to_directory])
@pytest.mark.parametrize("name", ["console.log", "disk1.qcow2", ".hidden", "a\nb", "\udcff"])
def test_what_a_broken_out_qemu_left_is_refused_and_nothing_behind_it_is_touched(
    directory: Path, tmp_path: Path, plant: Callable[[Path, Path], None], name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"root's")
    victim.chmod(0o600)
    plant(directory / name, victim)
    before = victim.stat()
    with pytest.raises(HostError) as caught:
        helper.own(str(directory), UID, GID)
    assert str(directory) in caught.value.message
    assert caught.value.message.isprintable()  # it goes to the journal, and QEMU chose the name
    after = victim.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    # the directory itself comes last: a QEMU cannot get at it while it is in doubt
    assert directory.stat().st_uid == os.getuid()


def test_sockets_of_a_qemu_that_has_ended_are_removed(directory: Path) -> None:
    for name in ("qmp-stop.sock", "another"):
        _socket(directory / name, directory)
    helper.own(str(directory), UID, GID)
    assert os.listdir(directory) == ["disk0.qcow2"]


@pytest.mark.needs_root
def test_a_device_is_refused(directory: Path) -> None:
    os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(HostError, match="not a plain file"):
        helper.own(str(directory), UID, GID)


def test_a_link_in_the_directorys_own_place_is_refused(directory: Path, scope: Scope) -> None:
    Path(scope.vm_dir("web2")).symlink_to(directory.absolute())
    with pytest.raises(HostError):
        helper.own(scope.vm_dir("web2"), UID, GID)
    with pytest.raises(HostError):
        helper.own(scope.vm_dir("web3"), UID, GID)


# before start and after stop, whole


@pytest.fixture
def unit(directory: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare what systemd has prepared when it runs the first step, of a VM without a NIC."""
    os.makedirs(scope.runtime(VM))
    os.chown(scope.runtime(VM), UID, GID)
    os.makedirs(scope.definitions_dir)
    Path(scope.definition(VM)).write_text("name: web1\n", encoding="utf-8")
    for name, value in (
        ("QSYSD_NICS", ""), ("QSYSD_ACCEL", "-accel tcg"), ("QSYSD_DIGEST", "0123456789abcdef"),
        ("QSYSD_READ_FILES", ""), ("QSYSD_MEMORY_MIB", "512"), ("QSYSD_CPUS", "2"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("unit")
def test_before_start_hands_the_directory_to_the_uid_that_systemd_chose(
    directory: Path, scope: Scope
) -> None:
    helper.before_start(scope, VM)
    assert owners(directory) == {(UID, GID)}


@pytest.mark.usefixtures("unit", "directory")
@pytest.mark.parametrize(
    ("words", "accelerator"), [("-accel tcg", "tcg"), ("-accel kvm", "kvm"), (None, "kvm")]
)
def test_before_start_records_what_the_vm_starts_with(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, words: str | None, accelerator: str
) -> None:
    """Without the variable, at the first start on a host, by the file that systemd reads next."""
    if words:
        monkeypatch.setenv("QSYSD_ACCEL", words)
    else:
        monkeypatch.delenv("QSYSD_ACCEL")
        monkeypatch.setattr("qsysd.runtime.kvm.probe", lambda: None)
    helper.before_start(scope, VM)
    assert Store(scope).started(VM) == Started("0123456789abcdef", 512, 2, accelerator)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("loaded", ["", "fedcba9876543210"])
def test_before_start_refuses_a_drop_in_that_systemd_has_not_loaded(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, loaded: str
) -> None:
    monkeypatch.setenv("QSYSD_EXPECTED_DROP_IN", "0123456789abcdef")
    monkeypatch.setenv("QSYSD_DROP_IN", loaded)
    with pytest.raises(HostError) as caught:
        helper.before_start(scope, VM)
    assert scope.drop_in(VM) in caught.value.message
    assert caught.value.hint == "qsysd render web1"
    assert not os.path.exists(scope.root_dir(VM))
    monkeypatch.setenv("QSYSD_DROP_IN", "0123456789abcdef")
    helper.before_start(scope, VM)


@pytest.mark.usefixtures("unit")
def test_before_start_refuses_another_image_than_the_disk_was_created_on(
    scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSYSD_IMAGE", "debian")
    monkeypatch.setenv("QSYSD_IMAGE_DIGEST", "a" * 64)
    os.makedirs(scope.images_dir)
    with pytest.raises(HostError, match="No such file"):
        helper.before_start(scope, VM)
    Path(scope.image("debian")).write_bytes(b"x" * 100)
    note = Path(scope.image_metadata("debian"))
    for text, refused in (
        (None, False),
        (f"sha256: {'a' * 64}\nfile_size: 100\n", False),
        (f"sha256: {'b' * 64}\nfile_size: 100\n", True),
        (f"sha256: '{'a' * 64}'\nfile_size: 99\n", True),
        ("\0", False),
    ):
        if text is not None:
            note.write_text(text, encoding="utf-8")
        if refused:
            with pytest.raises(HostError, match="image debian is not the one that the VM's disk was created"):
                helper.before_start(scope, VM)
        else:
            helper.before_start(scope, VM)


@pytest.mark.usefixtures("unit")
def test_before_start_reports_a_definition_that_was_changed_after_it_was_rendered(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    definition = Path(scope.definition(VM))
    monkeypatch.setenv("QSYSD_DEFINITION", hashlib.sha256(b"name: web1\n").hexdigest()[:16])
    helper.before_start(scope, VM)
    assert journal() == []
    definition.write_text("name: web1\ncpus: 2\n", encoding="utf-8")
    os.utime(definition, (100, 100))
    helper.before_start(scope, VM)
    (line,) = journal()
    assert f"{definition} was changed after it was rendered" in line
    definition.unlink()
    helper.before_start(scope, VM)
    (line,) = journal()
    assert f"{definition} does not exist" in line


@pytest.mark.needs_root
@pytest.mark.usefixtures("unit")
def test_after_stop_takes_it_back_and_can_be_repeated(directory: Path, scope: Scope) -> None:
    helper.before_start(scope, VM)
    os.unlink(scope.started_record(VM))
    os.makedirs(f"{scope.started_record(VM)}/in-the-way")
    helper.before_start(scope, VM)
    assert os.path.isfile(scope.started_record(VM))
    for what in ("file", "directory", "nothing"):
        if what == "directory":
            os.makedirs(f"{scope.started_record(VM)}/in-the-way")
        helper.after_stop(scope, VM)
        assert owners(directory) == {(0, 0)}
        assert not os.path.lexists(scope.started_record(VM))
        assert not os.path.lexists(scope.root_dir(VM))


@pytest.mark.usefixtures("unit")
def test_a_host_that_goes_down_is_not_held_up(directory: Path, scope: Scope) -> None:
    helper.before_start(scope, VM)
    Path(scope.shutdown_mark).touch()
    helper.after_stop(scope, VM)
    assert os.path.exists(scope.root_dir(VM))
    # a soft reboot keeps all of it; the next start finds its way through that
    helper.before_start(scope, VM)
    assert not os.path.exists(scope.shutdown_mark)
    assert owners(directory) == {(UID, GID)}


def test_a_root_is_open_to_its_user_and_leads_to_programs(scope: Scope) -> None:
    before = os.umask(0o077)
    try:
        for _ in range(2):
            roots.make(scope.root_dir(VM))
    finally:
        os.umask(before)
    root = Path(scope.root_dir(VM))
    assert os.readlink(root / "lib") == "usr/lib"
    for path in [root, *root.rglob("*")]:
        assert path.is_symlink() or (path.is_dir() and path.stat().st_mode & 0o777 == 0o755), path


def test_a_root_goes_with_all_that_systemd_mounted_over(scope: Scope) -> None:
    root = Path(scope.root_dir(VM))
    roots.make(str(root))
    # what systemd creates to mount over it
    (root / "var/lib/tiny").mkdir(parents=True)
    (root / "var/lib/tiny/vmlinuz").touch()
    (root / "run/host").mkdir()
    (root / "run/host/os-release").symlink_to(".os-release-stage/os-release")
    assert roots.remove(str(root))
    assert not root.exists()
    assert roots.remove(str(root))


def test_of_a_root_only_what_qsysd_created_is_removed(scope: Scope, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    root = Path(scope.root_dir(VM))
    roots.make(str(root))
    (root / "srv").symlink_to(other)
    (root / "usr/notes").write_text("a person's")
    assert not roots.remove(str(root))
    assert sorted(path.name for path in root.rglob("*")) == ["notes", "srv", "usr"]
    assert (other / "file").exists()
    # the next start and stop work with what is left
    roots.make(str(root))
    assert not roots.remove(str(root))


@pytest.mark.needs_root
@pytest.mark.usefixtures("unit")
def test_a_stop_touches_nothing_that_is_mounted_below_the_vms_root_or_directory(
    directory: Path, scope: Scope, journal: Callable[[], list[str]]
) -> None:
    helper.before_start(scope, VM)
    with wire.namespace():
        for place in (Path(scope.root_dir(VM), "mnt"), directory / "data"):
            place.mkdir()
            wire.run("mount", "-t", "tmpfs", "tmpfs", str(place))
            (place / "empty").touch()
        helper.after_stop(scope, VM)
        for place in (Path(scope.root_dir(VM), "mnt"), directory / "data"):
            assert os.listdir(place) == ["empty"]
    said = journal()
    assert scope.root_dir(VM) in said[0] and f"{directory}/data" in said[1]


def test_after_stop_is_quiet_where_nothing_is(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QSYSD_NICS", raising=False)
    helper.after_stop(scope, VM)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize(
    ("variable", "value"),
    [("QSYSD_DIGEST", ""), ("QSYSD_DIGEST", "0123456789abcde"), ("QSYSD_DIGEST", "0123456789abcdef0"),
     ("QSYSD_DIGEST", "../../etc/x"), ("QSYSD_DIGEST", "0123456789ABCDEF"),
     ("QSYSD_NICS", "eth0,52:54:00:00:00:01,qb-default,default,-"),
     ("QSYSD_NICS", "qv-a-0,x,qb-default,default,-"),
     ("QSYSD_NICS", "qv-a-0,52:54:00:00:00:01,qb-default,default,10.0.0.1;"),
     ("QSYSD_NICS", "qv-a-0,52:54:00:00:00:01,../x,default,-"),
     ("QSYSD_NICS", "qv-a-0,52:54:00:00:00:01,-x,default,-")],
)  # fmt: skip
def test_odd_variables_are_refused(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidError):
        helper.before_start(scope, VM)
    assert not os.path.exists(scope.started_record(VM))


@pytest.mark.usefixtures("unit")
def test_a_kernel_that_qemus_user_cannot_read_is_named(
    scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.touch(0o644)
    kernel.chmod(0o640)
    monkeypatch.setenv("QSYSD_READ_FILES", str(kernel))
    with pytest.raises(HostError, match="cannot be read by the VM's user") as caught:
        helper.before_start(scope, VM)
    assert caught.value.hint == f"chmod o+r {kernel}"
    kernel.chmod(0o644)
    helper.before_start(scope, VM)
    monkeypatch.setenv("QSYSD_READ_FILES", f"{kernel}:{tmp_path}/gone")
    with pytest.raises(HostError, match="gone: No such file"):
        helper.before_start(scope, VM)
    monkeypatch.setenv("QSYSD_READ_FILES", f"{kernel}:{tmp_path}")
    with pytest.raises(HostError, match=f"{tmp_path} is not a file"):
        helper.before_start(scope, VM)


@pytest.mark.usefixtures("unit")
def test_a_missing_directory_is_named(scope: Scope, directory: Path) -> None:
    directory.rename("elsewhere")
    with pytest.raises(HostError, match=scope.vm_dir(VM)):
        helper.before_start(scope, VM)


# the user


@pytest.mark.needs_root
def test_the_unprivileged_steps_give_up_all_that_is_roots(scope: Scope) -> None:
    os.makedirs(scope.runtime(VM))
    os.chown(scope.runtime(VM), UID, GID)
    program = (
        "import os\n"
        "from qsysd import paths\n"
        "from qsysd.runtime import helper\n"
        "def show():\n"
        "    status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "    print(os.getresuid(), os.getresgid(), os.getgroups())\n"
        "    print(*(int(status[name], 16) for name in ('CapEff', 'CapPrm')))\n"
        f"helper.become_user(paths.Scope(''), {VM!r})\n"
        "show()\n"
        "helper.become_root()\n"
        "show()\n"
        f"helper.become_user(paths.Scope(''), {VM!r})\n"
        "helper.forget_root()\n"
        "show()\n"
        "helper.become_root()\n"
        "show()\n"
    )
    package = Path(helper.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": package},
        extra_groups=[1, 4],
    )
    user, user_can, root, root_can, for_good, can_no_more, still, still_can = done.stdout.splitlines()
    # the real and the saved user are root's: QEMU's user can neither signal nor trace it
    assert user == f"{(0, UID, 0)} {(0, GID, 0)} []"
    assert user_can.split()[0] == "0"
    assert root == f"{(0,) * 3} {(0,) * 3} []"
    assert root_can.split()[0] != "0"
    assert for_good == still == f"{(UID,) * 3} {(GID,) * 3} []"
    assert can_no_more == still_can == "0 0"


# console logs


def test_a_console_log_that_has_grown_is_cut_to_its_last_part(
    directory: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "CONSOLE_LOG_MAX", 1000)
    monkeypatch.setattr(helper, "CONSOLE_LOG_KEPT", 100)
    log = directory / "console.log"
    log.write_bytes(b"a" * 950 + b"b" * 100)
    with log.open("ab") as qemus:
        helper.trim_logs(scope)
        qemus.write(b"new")
    assert log.read_bytes() == b"b" * 100 + b"new"
    helper.trim_logs(scope)
    assert log.stat().st_size == 103


def test_a_log_that_cannot_be_cut_keeps_no_other_from_it(
    directory: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "CONSOLE_LOG_MAX", 1000)
    monkeypatch.setattr(helper, "CONSOLE_LOG_KEPT", 100)
    other = Path(scope.vm_dir("web2"))
    other.mkdir()
    for place in (directory, other):
        (place / "console.log").write_bytes(b"a" * 2000)

    def full(file: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    helper.trim_logs(scope)
    assert [(place / "console.log").stat().st_size for place in (directory, other)] == [0, 0]


@pytest.mark.parametrize("plant", [_symlink, _hard_link, _fifo, _directory, _socket])
def test_nothing_else_is_cut_in_a_console_logs_place(
    directory: Path,
    scope: Scope,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Path, Path], None],
) -> None:
    monkeypatch.setattr(helper, "CONSOLE_LOG_MAX", 10)
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * 100)
    plant(directory / "console.log", victim)
    helper.trim_logs(scope)
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
def test_odd_arguments_are_a_usage_error(arguments: list[str]) -> None:
    assert helper.main(arguments) == InvalidError.code


def test_an_error_is_told_in_one_line_with_its_status(
    monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    def fail(scope: Scope, vm: str) -> None:
        raise HostError("no bridge", hint="make one")

    monkeypatch.setitem(helper.VERBS, "stop", fail)
    assert helper.main(["stop", "web1"]) == 7
    assert journal() == ["no bridge (make one)"]

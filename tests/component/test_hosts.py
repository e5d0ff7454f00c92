"""What a host is made ready with, and asked about: set-up, the units' helper, doctor, KVM, the journal."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import systemd_syntax
from own_host import OwnHost, removed_by_delete
from stand_ins import StandIns

from qsysd.errors import HostError, QsysdError, StateError
from qsysd.host import base_images, console_log, helper_install, intents, journal, keys
from qsysd.images.formats import BrokenImageError, backing_chain, read_header
from qsysd.operations import create, delete, doctor, image, query, setup
from qsysd.operations.setup import Action, Step
from qsysd.paths import Scope
from qsysd.qemu import machine_types
from qsysd.runtime import kvm, spawn

# set-up


def test_set_up_is_safe_to_repeat(host: OwnHost) -> None:
    # the host was set up before
    assert setup.setup(host).steps == []
    assert "Reload" not in host.fake.calls
    assert not [call for call in host.fake.calls if "RestartUnit" in call]


def test_set_up_mends_what_is_missing(host: OwnHost) -> None:
    scope = host.scope
    os.unlink(os.path.join(scope.unit_dir, "qemu-vm@.service"))
    os.unlink(scope.network_rules("default"))
    shutil.rmtree(scope.dhcp_hosts_dir("default"))
    host.fake.set("qsysd-dhcp@default.service", "failed", "failed")
    done = setup.setup(host).steps
    assert Step(Action.INSTALLED_UNIT, "qemu-vm@.service") in done
    assert Step(Action.STARTED_UNIT, "qsysd-dhcp@default.service") in done
    assert host.fake.calls.count("Reload") == 1
    assert os.path.isdir(scope.dhcp_hosts_dir("default"))
    assert setup.setup(host).steps == []


def test_set_up_keeps_what_people_have_written(host: OwnHost) -> None:
    Path(host.scope.defaults_file).write_text("memory: 2G\n", encoding="utf-8")
    network = Path(host.scope.network_definition("default"))
    network.write_text("name: default\nsubnet: 10.77.0.0/24\n", encoding="utf-8")
    key = Path(host.scope.ssh_key).read_bytes()
    setup.setup(host)
    assert host.store.defaults().memory_mib == 2048
    assert host.store.load_network("default").subnet == "10.77.0.0/24"
    assert "QSYSD_GATEWAY=10.77.0.1/24" in Path(host.scope.network_environment("default")).read_text(
        encoding="utf-8"
    )
    assert Path(host.scope.ssh_key).read_bytes() == key


def test_what_others_may_not_see_is_closed_whatever_the_umask(scope: Scope) -> None:
    before = os.umask(0)
    try:
        os.makedirs(scope.unit_dir)
        setup.setup(OwnHost(scope))
    finally:
        os.umask(before)
    closed = (scope.definitions_dir, scope.vms_dir, scope.intents_dir, scope.known_hosts_dir)
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in closed} == {0o700}
    assert stat.S_IMODE(os.stat(scope.ssh_key).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(scope.ssh_key)).st_mode) & 0o077 == 0


def test_definitions_are_rendered_again_for_a_new_version(host: OwnHost) -> None:
    for name in ("web1", "web2"):
        create.create(host, f"name: {name}\nimage: tiny\ndisks: [{{}}]\n", "x", start=False)
        Path(host.scope.environment(name)).write_text("# of an older version\n", encoding="utf-8")
    host.fake.calls.clear()
    rendered = {Step(Action.RENDERED_VM, name) for name in ("web1", "web2")}
    assert rendered <= set(setup.setup(host).steps)
    # systemd reads all drop-ins at once: with 1000 VMs, a daemon-reload takes a second.
    assert len([call for call in host.fake.calls if call.startswith("refresh")]) == 1
    Path(host.scope.definition("web1")).write_text("name: [", encoding="utf-8")
    setup.setup(host)
    assert any(line.startswith("warning: ") and "web1.yaml" in line for line in host.told)


def test_a_network_that_does_not_come_up_is_told_in_its_own_words(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.fake.set("qsysd-network@default.service", "failed", "failed")
    host.fake.results["qsysd-network@default.service"] = "failed"
    monkeypatch.setattr(journal, "failure", lambda *_: "nft: syntax error")
    with pytest.raises(QsysdError, match=r"qsysd-network@default\.service did not start: nft: syntax error"):
        setup.setup(host)


# the helper


def helpers(host: OwnHost) -> set[str]:
    return {name for name in os.listdir(host.scope.helper_dir) if name != "current"}


def current(host: OwnHost) -> str:
    return os.readlink(os.path.join(host.scope.helper_dir, "current"))


def upgrade(host: OwnHost, monkeypatch: pytest.MonkeyPatch, version: int) -> str:
    """Install the helper of another version."""
    monkeypatch.setattr(helper_install, "HELPER_MAIN", f"# version {version}\n{HELPER_MAIN}")
    return helper_install.install_helper(host)


HELPER_MAIN = helper_install.HELPER_MAIN


def run_helper(host: OwnHost, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the helper as a unit does."""
    command = helper_install.helper_command(host)
    return subprocess.run([*command, *arguments], check=False, capture_output=True, text=True, env={})


def test_the_helper_runs_without_the_package(host: OwnHost) -> None:
    done = run_helper(host, "stop", "web1")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_helper(host, "no-such-verb", "web1")
    assert (done.returncode, done.stderr) == (2, "the helper has no verb 'no-such-verb'\n")


@pytest.mark.parametrize(
    ("mark", "root", "runs"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_the_last_step_starts_python_only_for_something_to_do(
    host: OwnHost, mark: bool, root: bool, runs: bool
) -> None:
    os.makedirs(host.scope.roots_dir)
    if mark:
        Path(host.scope.shutdown_mark).touch()
    if root:
        os.mkdir(host.scope.root_dir("web1"))
    done = subprocess.run(
        ["/bin/sh", helper_install.after_stop(host), "web1"],
        check=False,
        capture_output=True,
        text=True,
        # a variable that the helper has a word about tells that it ran
        env={"QSYSD_NICS": "nonsense"},
    )
    assert ("QSYSD_NICS" in done.stderr, done.returncode) == ((True, 2) if runs else (False, 0))


def test_the_helper_is_compiled_and_open_to_the_vms_users(host: OwnHost) -> None:
    directory = Path(host.scope.helper_dir, current(host))
    assert len(list(directory.glob("qsysd/**/*.pyc"))) == len(helper_install.HELPER_MODULES)
    for path in [directory, *directory.rglob("*")]:
        assert path.stat().st_mode & 0o004, path


def test_an_upgrade_switches_at_one_blow_and_keeps_the_one_before(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = current(host)
    assert upgrade(host, monkeypatch, 2)
    second = current(host)
    assert helpers(host) == {first, second}
    # a stop that began before goes on with what it began with
    assert os.path.exists(os.path.join(host.scope.helper_dir, first, "qsysd/runtime/qmp.py"))
    assert upgrade(host, monkeypatch, 3)
    assert helpers(host) == {second, current(host)}
    assert not upgrade(host, monkeypatch, 3)
    assert run_helper(host, "stop", "web1").returncode == 0


def test_a_downgrade_uses_the_one_before_again(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    first = current(host)
    upgrade(host, monkeypatch, 2)
    monkeypatch.setattr(helper_install, "HELPER_MAIN", HELPER_MAIN)
    assert helper_install.install_helper(host)
    assert current(host) == first
    assert run_helper(host, "stop", "web1").returncode == 0


def test_current_leads_to_a_whole_helper_at_every_moment_of_an_upgrade(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    watched: dict[str, Callable[..., Any]] = {
        name: getattr(os, name) for name in ("rename", "unlink", "symlink", "makedirs")
    }

    def looked(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = watched[name](*arguments, **options)
            directory = os.path.join(host.scope.helper_dir, "current")
            seen.append(
                all(
                    os.path.exists(f"{directory}/qsysd/{module}.py")
                    for module in helper_install.HELPER_MODULES
                )
            )
            return result

        return call

    for name in watched:
        monkeypatch.setattr(os, name, looked(name))
    upgrade(host, monkeypatch, 2)
    assert len(seen) > 10
    assert all(seen)


@pytest.mark.parametrize("left", ["directory", "link", "dangling current", "no current"])
def test_what_a_killed_installation_left_is_not_in_the_way(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    link = Path(host.scope.helper_dir, "current")
    if left == "directory":
        upgrade(host, monkeypatch, 2)
        digest = current(host)
        monkeypatch.setattr(helper_install, "HELPER_MAIN", HELPER_MAIN)
        helper_install.install_helper(host)
        shutil.rmtree(os.path.join(host.scope.helper_dir, digest))
        os.makedirs(os.path.join(host.scope.helper_dir, f"{digest}.part", "qsysd"))
    elif left == "link":
        link.with_name("current.part").symlink_to("x")
    else:
        link.unlink()
        if left == "dangling current":
            link.symlink_to("gone")
    assert upgrade(host, monkeypatch, 2)
    assert run_helper(host, "stop", "web1").returncode == 0
    assert not [name for name in helpers(host) if name.endswith(".part")]


def helper_file(host: OwnHost, name: str) -> Path:
    """Return a file of the helper that is installed."""
    return Path(host.scope.helper_dir, "current", name)


def compiled(host: OwnHost) -> Path:
    """Return a compiled file of the helper."""
    (path,) = helper_file(host, "qsysd/runtime/__pycache__").glob("taps.*.pyc")
    return path


def into_directory(path: Path) -> None:
    """Put a directory in a file's place."""
    path.unlink()
    (path / "inside").mkdir(parents=True)


def into_link(path: Path) -> None:
    """Put a link to the same contents in a file's place."""
    path.rename("elsewhere")
    path.symlink_to(os.path.abspath("elsewhere"))


INSTALLED: dict[str, Callable[[OwnHost], Path]] = {
    "module": lambda host: helper_file(host, "qsysd/runtime/helper.py"),
    "main program": lambda host: helper_file(host, "qsysd-helper"),
    "after-stop": lambda host: helper_file(host, "after-stop"),
    "digests": lambda host: helper_file(host, "compiled.sha256"),
    "compiled": compiled,
    "template": lambda host: Path(host.scope.unit_dir, "qemu-vm@.service"),
    "unit": lambda host: Path(host.scope.unit_dir, "qsysd-recover.service"),
}
HARMS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "missing": Path.unlink,
    "unreadable": lambda path: path.chmod(0o600),
    "writable by all": lambda path: path.chmod(0o666),
    "directory": lambda path: into_directory(path),
    "link": lambda path: into_link(path),
}


@pytest.mark.parametrize("what", INSTALLED)
@pytest.mark.parametrize("harm", HARMS)
def test_what_is_not_as_installed_is_named_by_doctor_and_installed_again_by_set_up(
    host: OwnHost, what: str, harm: str
) -> None:
    path = INSTALLED[what](host)
    HARMS[harm](path)
    found = helper_install.differences(host)
    if harm in ("cut off", "not UTF-8") and what == "digests":
        assert all("__pycache__" in name for name in found) and found
    else:
        assert str(path) in found
    messages = [each.message for each in doctor.examine(host) if each.remedy == "qsysd setup"]
    assert all(any(name in message for message in messages) for name in found)
    assert {step.action for step in setup.setup(host).steps} & {"installed_unit", "installed_helper"}
    assert helper_install.differences(host) == []
    assert run_helper(host, "stop", "web1").returncode == 0
    assert setup.setup(host).steps == []
    assert not Path("elsewhere").exists() or Path("elsewhere").read_bytes()


def test_a_directory_of_the_helper_that_others_can_write_is_installed_again(host: OwnHost) -> None:
    helper_file(host, "qsysd").chmod(0o777)
    assert helper_install.differences(host) == [str(helper_file(host, "qsysd"))]
    assert helper_install.install_helper(host)
    assert helper_install.differences(host) == []


def test_a_helper_that_is_damaged_again_is_installed_again(host: OwnHost) -> None:
    for _ in range(3):
        helper_file(host, "qsysd/runtime/helper.py").write_text("def broken(:", encoding="utf-8")
        in_use = current(host)
        assert helper_install.install_helper(host)
        # a stop that began before goes on with what it began with
        assert in_use in helpers(host) and len(helpers(host)) == 2
        assert run_helper(host, "stop", "web1").returncode == 0


# KVM


@pytest.fixture
def device_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host have a /dev/kvm, whatever the machine has."""
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/kvm" or real(path))


@pytest.mark.parametrize("content", [b"", b"garbage\n", b"\xff\xfe", b"# kvm"])
def test_an_accelerator_that_is_damaged_is_chosen_again(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(kvm, "probe", lambda: "no KVM")
    os.makedirs(scope.runtime_dir)
    Path(scope.acceleration_file).write_bytes(content)
    assert kvm.chosen(scope) == ("tcg", "no KVM")


@pytest.mark.usefixtures("device_kvm")
def test_kvm_that_runs_a_guest_is_chosen(scope: Scope, stand_ins: StandIns) -> None:
    stand_ins.add("qemu-system-x86_64", "exit 85")
    kvm.ensure(scope)
    assert Path(scope.acceleration_file).read_text(encoding="utf-8") == (
        "# kvm: it ran a guest\nQSYSD_ACCEL=-accel kvm\nQSYSD_CPU=-cpu host\n"
    )
    (call,) = stand_ins.calls("qemu-system-x86_64")
    assert call[call.index("-accel") + 1] == "kvm"
    # of the guest's file nothing is left
    assert not os.path.exists(call[call.index("-kernel") + 1])


@pytest.mark.usefixtures("device_kvm")
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo 'failed to set MSR 0x10a' >&2; kill -ABRT $$", "failed to set MSR 0x10a"),
        ("echo 'Could not access KVM kernel module: Permission denied' >&2; exit 1", "Permission denied"),
        ("exit 0", "QEMU ended with status 0"),
        ("kill -SEGV $$", "QEMU ended with status -11"),
        ("sleep 1000", "a guest of a million instructions did not end within 0.2 s"),
    ],
)
def test_kvm_that_runs_no_guest_is_not_chosen_and_the_reason_is_kept(
    scope: Scope, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    if "sleep" in body:
        monkeypatch.setattr(kvm, "PROBE_TIMEOUT", 0.2)
        body = "exec sleep 1000"
    stand_ins.add("qemu-system-x86_64", body)
    accel, words = kvm.chosen(scope)
    assert accel == "tcg"
    assert reason in words
    lines = Path(scope.acceleration_file).read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ["QSYSD_ACCEL=-accel tcg", "QSYSD_CPU=-cpu max,erms=off,fsrm=off"]


@pytest.mark.usefixtures("device_kvm")
def test_words_of_qemu_cannot_become_a_line_of_their_own(scope: Scope, stand_ins: StandIns) -> None:
    stand_ins.add("qemu-system-x86_64", r"printf 'x\nA=\033[2J\ry\\' >&2; exit 1")
    kvm.ensure(scope)
    text = Path(scope.acceleration_file).read_text(encoding="utf-8")
    assert systemd_syntax.environment_file(text) == {
        "QSYSD_ACCEL": "-accel tcg",
        "QSYSD_CPU": "-cpu max,erms=off,fsrm=off",
    }
    assert "\x1b" not in text


@pytest.mark.usefixtures("device_kvm")
def test_a_host_is_tried_once_until_it_boots_again_or_somebody_asks(
    scope: Scope, stand_ins: StandIns
) -> None:
    stand_ins.add("qemu-system-x86_64", "exit 85")
    for _ in range(3):
        kvm.ensure(scope)
    assert len(stand_ins.calls("qemu-system-x86_64")) == 1
    stand_ins.add("qemu-system-x86_64", "exit 1")
    kvm.ensure(scope, again=True)
    assert kvm.chosen(scope)[0] == "tcg"


def test_no_device_needs_no_trial(scope: Scope, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/kvm" and real(path))
    stand_ins.add("qemu-system-x86_64", "exit 85")
    assert kvm.chosen(scope) == ("tcg", "/dev/kvm does not exist")
    assert stand_ins.calls("qemu-system-x86_64") == []


# machine types


def test_machine_types_are_asked_of_qemu_once_and_again_when_it_changes(
    host: OwnHost, stand_ins: StandIns
) -> None:
    text = (
        "Supported machines are:\\nmicrovm  microvm (i386)\\nq35  PC (alias of pc-q35-{})\\npc-q35-{}  PC\\n"
    )
    stand_ins.add("qemu-system-x86_64", f"printf '{text.format(1, 1)}'")
    for _ in range(2):
        assert machine_types.pinned_machine(host.scope, "q35") == "pc-q35-1"
    assert machine_types.pinned_machine(host.scope, "microvm") == "microvm"
    assert machine_types.pinned_machine(host.scope, "pc-q35-1") == "pc-q35-1"
    assert len(stand_ins.calls("qemu-system-x86_64")) == 1
    stand_ins.add("qemu-system-x86_64", f"printf '{text.format(20, 20)}'")
    assert machine_types.pinned_machine(host.scope, "q35") == "pc-q35-20"
    with pytest.raises(HostError, match="no machine type 'q36'"):
        machine_types.pinned_machine(host.scope, "q36")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"identity": 1}', b"\xff\xfe", b"[" * 99999, None]
)
def test_machine_types_that_are_damaged_are_asked_for_again(host: OwnHost, content: bytes | None) -> None:
    path = Path(host.scope.runtime_dir, "machines.json")
    path.unlink()
    if content is None:
        (path / "in-the-way").mkdir(parents=True)
    else:
        path.write_bytes(content)
    assert machine_types.pinned_machine(host.scope, "q35").startswith("pc-q35-")
    assert json.loads(path.read_text(encoding="utf-8")) if content is not None else path.is_dir()


# programs


def test_a_program_that_is_missing_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "SYSTEM_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="dhcp_release is not installed") as caught:
        spawn.run(["dhcp_release"])
    assert caught.value.hint == "apt install dnsmasq-utils"


def test_programs_get_a_closed_input_and_plain_english(stand_ins: StandIns) -> None:
    stand_ins.add("tool", 'cat; echo "$LANG $LC_ALL"')
    assert spawn.run(["tool"]).stdout == "C.UTF-8 C.UTF-8\n"
    assert spawn.run(["tool"], stdin="fed\n").stdout == "fed\nC.UTF-8 C.UTF-8\n"


def test_arguments_reach_a_program_as_they_are(stand_ins: StandIns) -> None:
    stand_ins.add("tool")
    arguments = ["", " ", "a b", "$HOME", "`id`", "*", "'", '"', "\\", "-x", "é", "a\nb"]
    spawn.run(["tool", *arguments])
    assert stand_ins.calls("tool") == [arguments]


def test_a_failed_program_is_quoted_by_its_last_words(stand_ins: StandIns) -> None:
    stand_ins.add("tool", "echo out; printf 'first\\n\\nlast words\\n\\n' >&2; exit 3")
    with pytest.raises(spawn.CommandError, match=r"^tool failed: last words$") as caught:
        spawn.run(["tool", "-x"])
    assert (caught.value.returncode, caught.value.argv) == (3, ["tool", "-x"])
    stand_ins.add("tool", "exit 4")
    with pytest.raises(spawn.CommandError, match="exit status 4"):
        spawn.run(["tool"])


def test_a_program_that_hangs_is_ended(stand_ins: StandIns) -> None:
    stand_ins.add("tool", "exec sleep 1000")
    with pytest.raises(QsysdError, match=r"tool did not end within 0\.1 s"):
        spawn.run(["tool"], timeout=0.1)


def test_under_debugging_a_command_can_be_copied(
    stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_ins.add("tool")
    monkeypatch.setenv("QSYSD_DEBUG", "1")
    spawn.run(["tool", "a b", "$x"])
    assert capfd.readouterr().err == f"+ {stand_ins.directory}/tool 'a b' '$x'\n"


# the journal


@pytest.fixture
def unit(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the properties that a VM's unit has after a start that failed."""
    properties: dict[str, Any] = {"Result": "exit-code", "AssertResult": True, "InvocationID": [1, 255]}

    def read(unit: str) -> Mapping[str, Any]:
        return properties

    monkeypatch.setattr(host.fake, "properties", read)
    return properties


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["qemu-system-x86_64: -foo: invalid option"],
         "qemu-system-x86_64: -foo: invalid option"),
        (["qemu-system-x86_64: warning: TCG doesn't support",
        "qemu-system-x86_64: -drive: Could not open 'x'", "noise"],
         "qemu-system-x86_64: -drive: Could not open 'x'"),
        (["network default: its bridge qb-default does not exist (systemctl restart …)"],
         "network default: its bridge qb-default does not exist (systemctl restart …)"),
        (["", "  ", "one", "two", "three", "four"], "two\nthree\nfour"),
        (["qemu-system-x86_64: \x1b[2J\x1b]0;x\x07no\x9b"], "qemu-system-x86_64: no"),
        ([], ""),
    ],
)  # fmt: skip
def test_qemus_own_words_come_first(
    host: OwnHost, unit: dict[str, Any], stand_ins: StandIns, lines: list[str], words: str
) -> None:
    write_journal(stand_ins, [("1", line) for line in lines])
    assert journal.failure(host, "qemu-vm@web1.service") == words
    assert stand_ins.calls("journalctl")[0] == ["--sync"]
    # only of this start, whatever was before
    assert stand_ins.calls("journalctl")[1][-1] == "_SYSTEMD_INVOCATION_ID=01ff"


def write_journal(stand_ins: StandIns, lines: Sequence[tuple[str, str | bytes]]) -> None:
    """Let the journal have lines of processes, in journalctl's JSON: of what is not UTF-8 the bytes."""
    entries = [
        {"_PID": pid, "MESSAGE": text if isinstance(text, str) else list(text), "__CURSOR": "s=1"}
        for pid, text in lines
    ]
    Path("words").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")
    stand_ins.add("journalctl", f'[ "$1" = --sync ] || cat "{os.getcwd()}/words"')


@pytest.mark.usefixtures("unit")
def test_an_error_of_the_first_step_is_not_repeated_by_the_last_one(
    host: OwnHost, stand_ins: StandIns
) -> None:
    first, last = "/x/y is not a plain file", "/x/y is not a plain file; it was not given back to root"
    write_journal(stand_ins, [("11", first), ("12", last), ("12", first)])
    assert journal.failure(host, "qemu-vm@web1.service") == first
    write_journal(stand_ins, [("11", b"no \xff text"), ("12", last)])
    assert journal.failure(host, "qemu-vm@web1.service") == "no \ufffd text"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("Result", "start-limit-hit", "crash loop"),
        ("AssertResult", False, "qsysd render writes it"),
        ("InvocationID", [], ""),
    ],
)
def test_what_systemd_knows_better_than_the_journal(
    host: OwnHost, unit: dict[str, Any], name: str, value: object, words: str
) -> None:
    unit[name] = value
    found = journal.failure(host, "qemu-vm@web1.service")
    assert words in found
    assert bool(words) is bool(found)


# what a QEMU may have left in its own directory, and people look at


@pytest.fixture
def taken_over(host: OwnHost) -> Path:
    """Return the directory of a VM whose QEMU does what it wants."""
    create.create(host, "name: web1\nimage: tiny\ndisks: [{}]\n", "x", start=False)
    return Path(host.scope.vm_dir("web1"))


ODD_NAMES = (b"\x1b[2J", b"\xff\xfe", b"a\nb", b"\x9b1m", "\u202e".encode(), b"-rf", b" ", b"disk9.qcow2\n")


def test_odd_file_names_are_shown_and_deleted(host: OwnHost, taken_over: Path) -> None:
    for name in ODD_NAMES:
        with open(os.path.join(os.fsencode(taken_over), name), "wb"):
            pass
    for line in removed_by_delete(host, "web1"):
        assert line.isprintable()
        line.encode()
    assert json.dumps(asdict(query.status(host, ["web1"])[0])).count("qcow2") == 1
    delete.delete(host, ["web1"])
    assert not taken_over.exists()


def test_only_what_is_in_the_directory_is_deleted(host: OwnHost, taken_over: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").touch()
    (taken_over / "link").symlink_to(victim)
    (taken_over / "deep").mkdir()
    (taken_over / "deep" / "up").symlink_to("../../..")
    (taken_over / "hard").hardlink_to(victim / "kept")
    os.mkfifo(taken_over / "fifo")
    delete.delete(host, ["web1"])
    assert os.listdir(victim) == ["kept"]
    assert os.path.exists(host.scope.image("tiny"))


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path.relative_to(Path.cwd())))


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _directory(path: Path) -> None:
    path.mkdir()


def _text(path: Path) -> None:
    path.write_bytes(b"root:x:0:0")


@pytest.mark.parametrize("plant", [_fifo, _socket, _directory, _text])
def test_a_disk_that_is_none_is_not_waited_for(
    host: OwnHost, taken_over: Path, plant: Callable[[Path], None]
) -> None:
    disk = Path(os.path.abspath(taken_over), "disk0.qcow2")
    disk.unlink()
    plant(disk)
    with pytest.raises(BrokenImageError):
        read_header(str(disk))
    # the image counts as used: the definition says so
    found = base_images.users(host, "tiny")
    assert found.vms == ["web1"] and "disk0.qcow2" in found.unknown["web1"]
    with pytest.raises(StateError, match="image tiny is in use by VM web1"):
        image.remove(host, ["tiny"])
    assert image.info(host, "tiny")[1] == found
    query.status(host, ["web1"])


def test_a_chain_that_leads_elsewhere_is_not_followed_into_pipes_and_devices(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    overlay = tmp_path / "overlay.qcow2"
    spawn.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", str(fifo), str(overlay), "1M"]
    )
    assert backing_chain(str(overlay)) == [str(fifo)]


@pytest.mark.parametrize("plant", [_fifo, _socket, _loop, _directory])
def test_a_console_log_that_is_none_is_not_waited_for(
    host: OwnHost, taken_over: Path, plant: Callable[[Path], None]
) -> None:
    plant(Path(os.path.abspath(taken_over), "console.log"))
    with pytest.raises(QsysdError, match=r"console\.log"):
        console_log.console_tail(host, "web1", 10)


def test_the_end_of_a_console_log_is_shown_without_what_plays_with_a_terminal(
    host: OwnHost, taken_over: Path
) -> None:
    assert console_log.console_tail(host, "web1", 10) == []
    log = taken_over / "console.log"
    log.write_bytes(
        b"".join(b"line %d\r\n" % number for number in range(5000)) + b"\x1b[2Jlast\xff\x1b]0;x\x07 login: "
    )
    tail = console_log.console_tail(host, "web1", 3)
    assert tail == ["line 4998", "line 4999", "last\ufffd login: "]
    assert console_log.console_tail(host, "web1", 0) == []


# doctor


def levels(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.subject: finding.level for finding in findings}


@pytest.fixture
def healthy(host: OwnHost, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Return a host on which doctor finds what it needs, or says what is missing for each test."""
    for name in ("qsysd-network@default.service", "qsysd-dhcp@default.service"):
        host.fake.set(name, "active", "running")
    answers = (
        '"--version") echo "QEMU emulator version 7.2" ;;',
        '"-machine help") echo "q35  PC (alias of pc-q35-7.2)" ;;',
        "*) exit 85 ;;",
    )
    stand_ins.add("qemu-system-x86_64", "\n".join(['case "$*" in', *answers, "esac"]))
    return host


def test_doctor_never_raises_and_names_a_remedy_for_whatever_is_wrong(healthy: OwnHost) -> None:
    for finding in doctor.examine(healthy):
        assert finding.level in ("ok", "warning", "missing")
        if finding.level != "ok":
            assert finding.remedy, finding


def test_doctor_on_a_host_without_a_bus(healthy: OwnHost) -> None:
    healthy.fake.gone = True
    findings = doctor.examine(healthy)
    assert levels(findings)["systemd"] == "missing"
    # the other checks are made all the same
    assert "sockets" in levels(findings)


def test_doctor_on_a_host_that_was_never_set_up(scope: Scope) -> None:
    findings = {finding.subject: finding for finding in doctor.examine(OwnHost(scope))}
    assert findings["set-up"].level == "missing"
    assert findings["set-up"].remedy == "qsysd setup"


def test_doctor_names_the_package_of_a_missing_program(
    healthy: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = spawn.find
    monkeypatch.setattr(spawn, "find", lambda program: None if program == "genisoimage" else real(program))
    findings = {finding.subject: finding for finding in doctor.examine(healthy)}
    assert (findings["genisoimage"].level, findings["genisoimage"].remedy) == (
        "missing",
        "apt install genisoimage",
    )


def test_doctor_names_the_units_of_a_network_that_are_down(healthy: OwnHost) -> None:
    healthy.fake.set("qsysd-dhcp@default.service", "failed", "failed")
    findings = {finding.subject: finding for finding in doctor.examine(healthy)}
    assert findings["network default"].level == "missing"
    assert findings["network default"].remedy == "systemctl restart qsysd-dhcp@default.service"


def test_doctor_finds_half_made_and_broken_vms(healthy: OwnHost) -> None:
    create.create(healthy, "name: web1\nimage: tiny\ndisks: [{}]\n", "x", start=False)
    Path(healthy.scope.environment("web1")).write_text("", encoding="utf-8")
    create.create(healthy, "name: web2\nimage: tiny\ndisks: [{}]\n", "x", start=False)
    Path(healthy.scope.definition("web2")).write_text("name: web2\nmemory: no\n", encoding="utf-8")
    intents.begin(healthy, "web3", "delete")
    findings = {finding.subject: finding for finding in doctor.examine(healthy)}
    assert findings["web1"].remedy == "qsysd render web1"
    assert "web2.yaml:2: memory" in findings["web2"].message
    assert findings["web3"].remedy == "qsysd recover"


def test_doctor_tells_that_vms_run_without_kvm(
    healthy: OwnHost, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "probe", lambda: "failed to set MSR 0x10a")
    findings = {finding.subject: finding for finding in doctor.examine(healthy)}
    assert findings["KVM"].level == "warning"
    assert "failed to set MSR 0x10a" in findings["KVM"].message


def test_doctor_says_when_socket_paths_are_too_long(set_up: Path, tmp_path: Path) -> None:
    host = OwnHost(Scope(str(tmp_path / ("x" * 90))))
    findings = {finding.subject: finding for finding in doctor.examine(host)}
    assert findings["sockets"].level == "missing"


def test_a_qemu_without_words_does_not_trouble_doctor(healthy: OwnHost, stand_ins: StandIns) -> None:
    stand_ins.add("qemu-system-x86_64", "exit 0")
    assert doctor.examine(healthy)


# the host's key


def test_the_hosts_key_is_made_once(host: OwnHost) -> None:
    first = keys.host_key(host.scope)
    assert first.startswith("ssh-ed25519 ")
    assert keys.host_key(host.scope) == first


@pytest.mark.parametrize("left", [[".part"], [".part", ".part.pub"], [".pub"]])
def test_a_killed_making_of_the_key_is_repeated(host: OwnHost, left: list[str]) -> None:
    for path in (host.scope.ssh_key, f"{host.scope.ssh_key}.pub"):
        os.unlink(path)
    for suffix in left:
        Path(f"{host.scope.ssh_key}{suffix}").write_text("half", encoding="utf-8")
    assert keys.host_key(host.scope).startswith("ssh-ed25519 ")
    assert sorted(os.listdir(os.path.dirname(host.scope.ssh_key))) == ["id_ed25519", "id_ed25519.pub"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", None])
def test_a_damaged_public_half_is_derived_from_the_private_one(host: OwnHost, content: bytes | None) -> None:
    path = Path(f"{host.scope.ssh_key}.pub")
    before = path.read_text(encoding="utf-8").split()[:2]
    path.unlink()
    if content is None:
        (path / "in-the-way").mkdir(parents=True)
    else:
        path.write_bytes(content)
    assert keys.host_key(host.scope).split()[:2] == before
    assert path.is_dir() or path.read_text(encoding="utf-8").split()[:2] == before


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", None])
def test_a_damaged_private_half_is_an_error_with_a_remedy(host: OwnHost, content: bytes | None) -> None:
    path = Path(host.scope.ssh_key)
    for half in (path, Path(f"{path}.pub")):
        half.unlink()
        if content is None:
            (half / "in-the-way").mkdir(parents=True)
        else:
            half.write_bytes(content)
    with pytest.raises(HostError, match=r"the SSH key .*id_ed25519 cannot be used: ") as caught:
        keys.host_key(host.scope)
    assert caught.value.hint and f"mv {path} {path}.damaged" in caught.value.hint

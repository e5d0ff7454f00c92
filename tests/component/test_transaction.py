"""Locks that die with their holder, and durable intents."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from own_host import OwnHost

import qsysd
from qsysd import paths
from qsysd.errors import RUN_AS_ROOT, QsysdError, TimeoutExpired
from qsysd.files import remove, write_atomic
from qsysd.host import intents, locks
from qsysd.paths import Scope

PACKAGE = os.path.dirname(os.path.dirname(qsysd.__file__))
HOLD = """
import sys
from qsysd.host import locks
from qsysd.host.context import Host
from qsysd.paths import Scope
with locks.locked(Host(Scope("")), sys.argv[2:], exclusive=sys.argv[1] == "exclusive"):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another command, in a process of its own, that holds locks until it is let go.

    at_once: it lets them go as soon as it has them.
    """

    def __init__(self, *names: str, exclusive: bool = True, at_once: bool = False) -> None:
        kind = "exclusive" if exclusive else "shared"
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, kind, *names],
            stdin=subprocess.DEVNULL if at_once else subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": PACKAGE},
        )

    def wait(self) -> Holder:
        """Return when the locks are held."""
        assert self.process.stdout
        assert self.process.stdout.readline() == "held\n"
        return self

    def release(self) -> None:
        """Let the locks go, as a command does at its end."""
        self.process.communicate(timeout=20)

    def kill(self) -> None:
        """Kill the command."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def hold() -> Iterator[Callable[..., Holder]]:
    """Start other commands that hold locks."""
    holders: list[Holder] = []

    def start(*names: str, exclusive: bool = True, at_once: bool = False) -> Holder:
        holders.append(Holder(*names, exclusive=exclusive, at_once=at_once))
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()


@pytest.fixture
def host(scope: Scope) -> OwnHost:
    """Return a host with the directories that locks and intents need."""
    os.makedirs(scope.intents_dir)
    return OwnHost(scope)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up waiting for a lock at once, and say so before."""
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.1)
    monkeypatch.setattr(locks, "REPORT_AFTER", 0.0)


def is_free(host: OwnHost, *names: str, exclusive: bool = True) -> bool:
    """Return whether a command would get these locks at once."""
    with contextlib.suppress(TimeoutExpired), locks.locked(host, names, exclusive=exclusive):
        return True
    return False


# locks


@pytest.mark.usefixtures("impatient")
def test_what_another_command_changes_is_waited_for_and_that_is_told(
    host: OwnHost, hold: Callable[..., Holder]
) -> None:
    hold("web1").wait()
    words = "web1: another qsysd command has been running"
    with pytest.raises(TimeoutExpired, match=words) as caught, locks.locked(host, ["web1"]):
        raise AssertionError("two commands hold one lock")
    assert caught.value.code == 6
    assert host.told == ["web1: waiting for another qsysd command to end"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("lock", "subject"),
    [(locks.of_image("debian"), "image debian"), (paths.SETUP, "setup"), (paths.ADDRESSES, "addresses")],
)
def test_the_message_of_a_lock_names_its_subject(
    host: OwnHost, hold: Callable[..., Holder], lock: str, subject: str
) -> None:
    hold(lock).wait()
    with pytest.raises(TimeoutExpired, match=f"^{subject}: another"), locks.locked(host, [lock]):
        raise AssertionError("two commands hold one lock")
    assert host.told == [f"{subject}: waiting for another qsysd command to end"]


@pytest.mark.usefixtures("impatient")
def test_another_vm_is_not_waited_for(host: OwnHost, hold: Callable[..., Holder]) -> None:
    hold("web1").wait()
    assert is_free(host, "web2")
    assert host.told == []


@pytest.mark.usefixtures("impatient")
def test_a_stop_lets_a_kill_through_but_no_delete(host: OwnHost, hold: Callable[..., Holder]) -> None:
    hold("web1", exclusive=False).wait()
    assert is_free(host, "web1", exclusive=False)
    assert not is_free(host, "web1")


@pytest.mark.usefixtures("impatient")
def test_a_lock_dies_with_its_holder(host: OwnHost, hold: Callable[..., Holder]) -> None:
    holder = hold("web1").wait()
    assert not is_free(host, "web1")
    holder.kill()
    assert is_free(host, "web1")


@pytest.mark.usefixtures("impatient")
def test_what_a_command_starts_does_not_inherit_its_locks(host: OwnHost) -> None:
    with locks.locked(host, ["web1"]):
        child = subprocess.Popen(["sleep", "1000"], close_fds=False)
    try:
        assert is_free(host, "web1")
    finally:
        child.kill()
        child.wait()


def test_a_lock_is_got_when_its_holder_ends(host: OwnHost, hold: Callable[..., Holder]) -> None:
    holder = hold("web1").wait()
    timer = threading.Timer(0.1, holder.release)
    timer.start()
    with locks.locked(host, ["web1"]):
        assert holder.process.wait(20) == 0
    timer.join()


def test_a_lock_file_is_never_removed(host: OwnHost) -> None:
    with locks.locked(host, ["web1"]):
        before = os.stat(host.scope.lock("web1")).st_ino
    with locks.locked(host, ["web1"]):
        assert os.stat(host.scope.lock("web1")).st_ino == before
    assert os.listdir(host.scope.locks_dir)


def test_an_error_inside_lets_the_locks_go(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.1)
    with pytest.raises(ZeroDivisionError), locks.locked(host, ["web1", "web2"]):
        raise ZeroDivisionError
    assert is_free(host, "web1", "web2")


def test_names_that_share_a_file_are_locked_together_without_waiting(host: OwnHost) -> None:
    names = [f"vm{number}" for number in range(1000)]
    assert len({host.scope.lock(name) for name in names}) < 1000
    assert is_free(host, *names)


@pytest.mark.usefixtures("impatient")
def test_locks_of_a_kind_are_taken_inside_those_of_another(host: OwnHost) -> None:
    # what create and set-up do; with one file in two kinds a command would wait for itself
    for number in range(300):
        name = f"vm{number}"
        with (
            locks.locked(host, [paths.SETUP]),
            locks.locked(host, [name]),
            locks.locked(host, [f"image:{name}"], exclusive=False),
            locks.locked(host, [paths.ADDRESSES]),
        ):
            assert len(os.listdir(host.scope.locks_dir)) >= 4


def test_locks_are_always_taken_in_one_order(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    real = locks._open_lock

    def open_lock(scope: Scope, name: str) -> int:
        taken.append(name)
        return real(scope, name)

    monkeypatch.setattr(locks, "_open_lock", open_lock)
    names = [f"web{number}" for number in range(9)]
    for order in (names, names[::-1], names[3:] + names[:3]):
        with locks.locked(host, order):
            pass
    assert taken[:9] == taken[9:18] == taken[18:]
    assert sorted(taken[:9]) == names


def test_commands_that_want_the_same_vms_in_another_order_do_not_wait_for_each_other(
    host: OwnHost, hold: Callable[..., Holder]
) -> None:
    orders = (("web1", "web2", "web3"), ("web3", "web2", "web1"), ("web2", "web3", "web1"))
    for holder in [hold(*order, at_once=True) for order in 2 * orders]:
        assert holder.process.communicate(timeout=60)[0] == "held\n"


def test_no_permission_says_what_to_do(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    words = "Permission denied"
    with pytest.raises(QsysdError, match=words) as caught, locks.locked(host, ["web1"]):
        raise AssertionError("there is no lock")
    assert caught.value.hint == RUN_AS_ROOT


# intents


def found(host: OwnHost) -> list[tuple[str, str, str]]:
    """Return kind, name and verb of each intent on disk."""
    return [(intent.kind, intent.name, intent.verb) for intent in intents.pending(host.scope)]


def test_an_intent_exists_while_a_change_is_incomplete(host: OwnHost) -> None:
    with intents.intent(host, "web1", "create", lambda: None):
        assert found(host) == [("vm", "web1", "create")]
        assert os.listdir(host.scope.intents_dir) == ["vm.web1.create.json"]
    assert found(host) == []


def test_an_error_is_undone_and_then_the_intent_is_removed(host: OwnHost) -> None:
    seen: list[list[tuple[str, str, str]]] = []

    def undo() -> None:
        seen.append(found(host))

    with pytest.raises(ZeroDivisionError), intents.intent(host, "web1", "create", undo):
        raise ZeroDivisionError
    assert seen == [[("vm", "web1", "create")]]
    assert found(host) == []


def test_ctrl_c_is_undone(host: OwnHost) -> None:
    undone: list[str] = []

    def undo() -> None:
        undone.append("web1")

    with pytest.raises(KeyboardInterrupt), intents.intent(host, "web1", "create", undo):
        raise KeyboardInterrupt
    assert undone == ["web1"]
    assert found(host) == []


@pytest.mark.parametrize(
    "error", [QsysdError("no bus"), OSError(39, "Directory not empty"), RecursionError(), KeyboardInterrupt()]
)
def test_an_undo_that_fails_leaves_the_intent_for_the_next_command(
    host: OwnHost, error: BaseException
) -> None:
    def undo() -> None:
        raise error

    wanted = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ZeroDivisionError
    with pytest.raises(wanted), intents.intent(host, "web1", "create", undo):
        raise ZeroDivisionError
    assert found(host) == [("vm", "web1", "create")]


def test_an_intent_is_durable_before_the_first_effect_and_gone_for_good_after_the_last(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(f"{os.path.basename(path)} {len(intents.pending(host.scope))}")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    os.makedirs("etc")
    with intents.intent(host, "web1", "create", lambda: None):
        assert synced == ["vm.web1.create.json 1", "intents 1"]
        write_atomic("etc/file", "text", 0o644)
        assert synced[2:] == ["file.part 1"]
    # The change is durable before the intent is removed. Were that to come back after a power cut, the
    # next host boot would remove a whole VM.
    assert synced[3:] == ["etc 1", "intents 0"]


def test_what_an_undo_removes_is_durable_before_the_intent_is_removed(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    os.makedirs("etc")

    def sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(f"{os.path.basename(path)} {len(intents.pending(host.scope))}")

    def undo() -> None:
        remove("etc/file")

    with pytest.raises(ZeroDivisionError), intents.intent(host, "web1", "create", undo):
        write_atomic("etc/file", "text", 0o644)
        monkeypatch.setattr(os, "fsync", sync)
        raise ZeroDivisionError
    assert synced[-2:] == ["etc 1", "intents 0"]


def test_an_intent_that_cannot_be_written_is_an_error_and_leaves_none(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = r"vm\.web1\.create\.json cannot be written: No space left"
    with pytest.raises(QsysdError, match=words) as caught:
        intents.begin(host, "web1", "create")
    assert caught.value.hint == "the disk is full: free some space and try again"
    assert found(host) == []


def test_a_host_without_intents_has_none(scope: Scope) -> None:
    assert intents.pending(scope) == []
    assert intents.unrecognized(scope) == []


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"{}", b'"create"', b"\xff\xfe", b"[" * 99999])
@pytest.mark.parametrize(("name", "verb"), [("web1.json", "create"), ("vm.web1.delete.json", "delete")])
def test_what_is_in_an_intent_is_never_needed(host: OwnHost, text: bytes, name: str, verb: str) -> None:
    Path(host.scope.intents_dir, name).write_bytes(text)
    assert found(host) == [("vm", "web1", verb)]


def test_an_intent_of_the_older_form_has_its_verb_inside(host: OwnHost) -> None:
    Path(host.scope.intents_dir, "web1.json").write_text('{"verb": "delete", "pid": 1}', encoding="utf-8")
    assert found(host) == [("vm", "web1", "delete")]


def plant_strange(scope: Scope) -> set[str]:
    """Leave entries beside the intents that are none; return their names."""
    folder = Path(scope.intents_dir)
    (folder / "web1.json").mkdir()
    (folder / "vm.web1.delete.json").mkdir()
    (folder / "vm.web1.delete.json/inside").touch()
    (folder / "web2.json").symlink_to("nowhere")
    os.mkfifo(folder / "vm.web2.delete.json")
    for name in (
        "notes",
        "Web.json",
        "..json",
        "vm.web1.a.b.json",
        "a b.json",
        "-x.json",
        "x\n.json",
    ):
        (folder / name).touch()
    os.close(os.open(os.fsencode(folder) + b"/\xff\xfe.json", os.O_CREAT | os.O_WRONLY))
    return {os.path.basename(path) for path in intents.unrecognized(scope)}


def test_what_is_no_intent_is_named_and_in_the_way_of_none(host: OwnHost) -> None:
    names = plant_strange(host.scope)
    assert names == set(os.listdir(host.scope.intents_dir)) and len(names) == 12
    assert found(host) == []
    begun = [intents.begin(host, name, "delete") for name in ("web1", "web2")]
    assert [intent.name for intent in begun] == ["web1", "web2"]
    assert found(host) == [("vm", "web1", "delete"), ("vm", "web2", "delete")]
    for intent in begun:
        intents.end(intent)
    # what was in an intent's place is kept under another name
    moved = {"vm.web1.delete.json": "vm.web1.delete.json.1", "vm.web2.delete.json": "vm.web2.delete.json.1"}
    assert set(os.listdir(host.scope.intents_dir)) == {moved.get(name, name) for name in names}
    assert Path(host.scope.intents_dir, "vm.web1.delete.json.1/inside").exists()


def test_a_file_in_the_place_of_all_intents_is_named(host: OwnHost) -> None:
    os.rmdir(host.scope.intents_dir)
    Path(host.scope.intents_dir).touch()
    assert intents.pending(host.scope) == []
    assert intents.unrecognized(host.scope) == [host.scope.intents_dir]

"""create and delete: everything is removed after an error, and durable before the intent is removed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import wire
from own_host import OwnHost
from stand_ins import StandIns
from vms import files, make

from qsysd import seed
from qsysd.errors import HostError, QsysdError
from qsysd.host import intents, journal, unit_states
from qsysd.operations import create, delete, power
from qsysd.qemu.nic import ports
from qsysd.runtime import roots, taps


def test_a_drop_in_of_the_administrator_can_exist_before_the_vm_and_is_kept(host: OwnHost) -> None:
    own = Path(host.scope.drop_in_dir("web1"), "60-mine.conf")
    own.parent.mkdir()
    own.touch()
    make(host)
    assert delete.delete(host, ["web1"]).kept == [str(own)]
    assert os.listdir(own.parent) == [own.name]


def test_delete_removes_what_killed_writes_left(host: OwnHost) -> None:
    before = files()
    make(host)
    for path in (host.scope.definition("web1"), host.scope.environment("web1"), host.scope.drop_in("web1")):
        Path(f"{path}.part").touch()
    delete.delete(host, ["web1"])
    assert files() == before


def test_all_is_removed_when_qemu_does_not_start(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files()
    host.fake.results["qemu-vm@web1.service"] = "failed"
    monkeypatch.setattr(journal, "failure", lambda *_: "qemu-system-x86_64: -foo: invalid option")
    with pytest.raises(
        QsysdError, match="web1 did not start: qemu-system-x86_64: -foo: invalid option"
    ) as caught:
        make(host)
    assert caught.value.hint == "nothing was created; fix the error and run the command again"
    assert files() == before
    assert unit_states.enabled_names(host) == set()
    assert host.fake.state("qemu-vm@web1.service").active == "inactive"


@pytest.mark.parametrize("program", ["qemu-img", "genisoimage"])
def test_everything_is_removed_when_a_program_fails_and_its_error_is_quoted(
    host: OwnHost, unchanged: Callable[[], None], stand_ins: StandIns, program: str
) -> None:
    stand_ins.add(program, "echo 'warning: x' >&2; echo 'No space left on device' >&2; exit 1")
    with pytest.raises(QsysdError, match="No space left on device"):
        make(host)
    assert stand_ins.calls(program)
    unchanged()


@pytest.mark.needs_root
@pytest.mark.parametrize("room", [0, 60, 120, 240, 360])
def test_everything_is_removed_when_the_disk_is_full(host: OwnHost, room: int) -> None:
    # the VMs' directory alone is on the small disk; QEMU's two files need 200 KiB, the seed 400
    with wire.namespace():
        wire.run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", host.scope.vms_dir)
        Path(host.scope.vms_dir, "full").write_bytes(b"x" * (1024 * (1024 - room)))
        before = files()
        with pytest.raises(QsysdError, match="No space left"):
            make(host, start=False)
        assert files() == before
        assert intents.pending(host.scope) == []


@pytest.mark.needs_root
def test_a_vm_can_be_deleted_on_a_full_disk(host: OwnHost) -> None:
    with wire.namespace():
        wire.run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", host.scope.state_dir)
        for path in (
            host.scope.vms_dir,
            host.scope.intents_dir,
            host.scope.images_dir,
            host.scope.network_state_dir,
        ):
            os.makedirs(path)
        create.create(host, "name: web1\ndisks: [{size: 1M}]\nnics: []\nseed: false\n", "x", start=False)
        wire.run("dd", "if=/dev/zero", f"of={host.scope.vms_dir}/full", "bs=4k", check=False)
        with pytest.raises(QsysdError, match="No space left"):
            intents.begin(host, "web2", "create")
        delete.delete(host, ["web1"])
        assert os.listdir(host.scope.vms_dir) == ["full"]
        assert host.store.names() == []


@pytest.mark.needs_root
def test_delete_removes_the_tap_and_root_of_its_vm_only(host: OwnHost) -> None:
    with wire.namespace():
        wire.run("ip", "link", "add", "qb-default", "type", "bridge")
        for name in ("web1", "web2"):
            spec = make(host, name, start=False)
            taps.plug(host.scope, ports(spec), 12345, name)
            roots.make(host.scope.root_dir(name))
        delete.delete(host, ["web1"])
        assert list(taps.existing_taps()) == ["qv-web2-0"]
        assert os.listdir(host.scope.roots_dir) == ["web2"]
        delete.delete(host, ["web2"])
        assert not taps.existing_taps()


@pytest.mark.parametrize("method", ["EnableUnitFiles", "StartUnit"])
def test_the_next_command_recovers_a_create_that_lost_the_bus(host: OwnHost, method: str) -> None:
    before = files()
    host.fake.goes_at = method
    with pytest.raises(HostError, match="the system bus cannot be reached"):
        make(host)
    # nothing could be asked of systemd: the next command, with a bus, brings it to its end
    assert [intent.name for intent in intents.pending(host.scope)] == ["web1"]
    assert "web1: the failed create could not be undone" in host.told[0]
    other = OwnHost(host.scope)
    power.start(other, None)
    assert files() == before
    assert intents.pending(host.scope) == []


def test_everything_is_removed_after_ctrl_c(
    host: OwnHost, unchanged: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(seed, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(host)
    unchanged()


class Synced:
    """Records which files and directories are synced, and with how many intents on the disk."""

    def __init__(self, host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = host
        self.found: list[tuple[str, int]] = []
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, descriptor: int) -> None:
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.found.append((path, len(os.listdir(self.host.scope.intents_dir))))

    def under_intent(self) -> set[str]:
        """Return what was synced while the intent was on the disk."""
        return {path for path, intents in self.found if intents}


def places(host: OwnHost) -> set[str]:
    """Return the directories in which a VM has an entry."""
    scope = host.scope
    shared = {scope.definitions_dir, scope.unit_dir, scope.wants_dir, scope.vms_dir}
    return shared | {scope.dhcp_hosts_dir("default")}


def test_a_new_vm_is_durable_before_its_intent_is_removed(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = Synced(host, monkeypatch)
    create.create(host, "name: web1\nimage: tiny\ndisks: [{size: 1M}, {size: 1M}]\n", "x")
    scope = host.scope
    assert synced.found[-1] == (scope.intents_dir, 0)
    inside = {scope.overlay("web1"), scope.overlay("web1", "disk1"), f"{scope.seed('web1')}.part"}
    assert places(host) | inside | {scope.vm_dir("web1"), scope.drop_in_dir("web1")} <= synced.under_intent()


def test_a_delete_is_durable_before_its_intent_is_removed(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(host)
    synced = Synced(host, monkeypatch)
    delete.delete(host, ["web1"])
    assert synced.found[-1] == (host.scope.intents_dir, 0)
    assert places(host) <= synced.under_intent()


def test_the_undo_of_a_create_is_durable_before_its_intent_is_removed(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.fake.results["qemu-vm@web1.service"] = "failed"
    synced = Synced(host, monkeypatch)
    with pytest.raises(QsysdError):
        make(host)
    assert synced.found[-1] == (host.scope.intents_dir, 0)
    assert places(host) <= synced.under_intent()

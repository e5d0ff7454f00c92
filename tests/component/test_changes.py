"""What every changing verb does first: privilege, recovery, locks, and the choice of VMs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_host import OwnHost

from qsysd import paths
from qsysd.errors import HostError, InvalidError, QsysdError
from qsysd.host import changes, intents, locks, recovery, selection
from qsysd.host.changes import begin, changing, changing_images, setting_up
from qsysd.host.context import Host
from qsysd.host.removal import remove_everything
from qsysd.operations import create, delete, edit, image, power, query
from qsysd.operations.list import list_vms

VM = "name: {}\nimage: tiny\nseed: false\n"


def make(host: OwnHost, *names: str) -> None:
    for name in names:
        create.create(host, VM.format(name), "x", start=False, enable=False)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Return the locks that are taken, in their order, each with whether it is exclusive."""
    found: list[tuple[str, bool]] = []
    real = locks._wait_for_lock

    def record(host: Host, descriptor: int, name: str, exclusive: bool) -> None:
        found.append((name, exclusive))
        real(host, descriptor, name, exclusive)

    monkeypatch.setattr(locks, "_wait_for_lock", record)
    return found


def test_locks_are_taken_in_the_documented_order(host: OwnHost, taken: list[tuple[str, bool]]) -> None:
    with setting_up(host), changing(host, ["web1"], images=["tiny"], addresses=True) as vms:
        assert vms == ["web1"]
    assert taken == [(paths.SETUP, True), ("web1", True), ("image:tiny", False), (paths.ADDRESSES, True)]


def test_starting_and_stopping_share_the_lock(host: OwnHost, taken: list[tuple[str, bool]]) -> None:
    make(host, "web1")
    taken.clear()
    for verb in (power.start, power.stop, power.kill, power.pause):
        verb(host, ["web1"])
    assert taken == [("web1", False)] * 4


def test_a_verb_that_changes_images_locks_them(host: OwnHost, taken: list[tuple[str, bool]]) -> None:
    with changing_images(host, ["tiny"]):
        assert taken == [("image:tiny", True)]


@pytest.mark.parametrize(
    "change",
    [lambda host: changing(host, ["web1"]), lambda host: changing_images(host, ["tiny"]), setting_up],
)
def test_every_change_needs_root(scope: paths.Scope, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(QsysdError, match="root privileges are required"), change(Host(scope)):
        raise AssertionError("it was allowed")


def test_a_verb_that_needs_the_units_refuses_a_host_that_is_not_set_up(host: OwnHost) -> None:
    os.unlink(Path(host.scope.unit_dir, paths.UNIT_TEMPLATE))
    with pytest.raises(HostError, match="not set up") as caught:
        begin(host, None, ready=True)
    assert caught.value.hint == "qsysd setup"
    assert begin(host, None) == []


@pytest.mark.parametrize("verb", [power.stop, power.kill, power.pause, power.disable, edit.render])
def test_every_changing_verb_recovers_first(host: OwnHost, verb: Callable[..., Any]) -> None:
    make(host, "web1", "web2")
    intents.begin(host, "web2", "create")
    verb(host, ["web1"])
    assert host.store.names() == ["web1"]
    assert intents.pending(host.scope) == []


def test_the_rest_of_a_killed_image_build_is_removed(host: OwnHost) -> None:
    rest = Path(host.scope.images_dir, ".debian.part")
    rest.mkdir()
    changes.recover(host)
    assert not rest.exists()


def test_other_files_beside_the_images_cause_no_recovery(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For example of a download, which can stay there.
    Path(host.scope.images_dir, "debian.qcow2.part").touch()
    recovered: list[Host] = []
    monkeypatch.setattr(recovery, "recover", recovered.append)
    changes.recover(host)
    assert not recovered


def test_all_vms_are_those_after_recovery(host: OwnHost) -> None:
    # The VM of a killed create is removed by recovery: it is not one of all VMs.
    make(host, "web1", "web2")
    intents.begin(host, "web2", "create")
    assert [outcome.name for outcome in power.start(host, None)] == ["web1"]


def test_no_name_at_all_never_means_all_vms(host: OwnHost) -> None:
    make(host, "web1")
    for verb in (power.stop, list_vms, query.status):
        with pytest.raises(InvalidError, match="missing VM"):
            verb(host, [])
    with pytest.raises(InvalidError, match="missing NAME"):
        image.remove(host, [])
    assert selection.resolve(host, None) == ["web1"]
    assert selection.resolve(host, ["b", "a", "b"]) == ["b", "a"]


@pytest.mark.parametrize(
    "verb",
    [power.start, power.stop, power.restart, power.kill, power.pause, power.enable, power.disable,
    edit.render, delete.delete],
)  # fmt: skip
@pytest.mark.parametrize("stale", [False, True])
def test_a_vm_that_is_deleted_meanwhile_does_not_stop_a_verb_for_all_vms(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch, verb: Callable[..., Any], stale: bool
) -> None:
    make(host, "web1", "web2")
    if stale:
        Path(host.scope.definition("web2")).write_text("name: [", encoding="utf-8")
    for name in ("web1", "web2"):
        host.fake.set(paths.unit(name), "active", "running")
    real = locks._wait_for_lock

    def wait(host: Host, descriptor: int, name: str, exclusive: bool) -> None:
        real(host, descriptor, name, exclusive)
        if name == "web2" and host.store.exists(name):
            remove_everything(host, name)

    monkeypatch.setattr(locks, "_wait_for_lock", wait)
    done = verb(host, None)
    assert "web2" not in repr(done)
    assert "web1" in repr(done)

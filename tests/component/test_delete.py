"""What `delete` returns: what it would remove, and what it has removed."""

from __future__ import annotations

import threading
import time

import pytest
from own_host import OwnHost, removed_by_delete

from qsysd import paths
from qsysd.errors import NotFoundError
from qsysd.host import intents, locks, removal
from qsysd.operations import create, delete

VM = "name: {}\nimage: tiny\nseed: false\n"


def make(host: OwnHost, name: str, more: str = "") -> None:
    create.create(host, VM.format(name) + more, start=False, enable=False)


def test_a_dry_run_names_the_vms_that_depend_on_a_vm(host: OwnHost) -> None:
    make(host, "db")
    for name in ("web1", "web2"):
        make(host, name, "depends_on: [db]\n")
    contents = {each.name: each for each in delete.delete(host, ["db", "web2"], dry_run=True).contents}
    # A VM that is deleted as well does not need it any more.
    assert (contents["db"].needed_by, contents["web2"].needed_by) == (["web1"], [])
    assert "web1, web2 depend on it, and will start without it" in removed_by_delete(host, "db")


def test_a_dry_run_removes_nothing_and_shows_what_a_vm_has(host: OwnHost) -> None:
    make(host, "web1")
    host.fake.set(paths.unit("web1"), "active", "running")
    found = delete.delete(host, None, dry_run=True)
    (contents,) = found.contents
    assert (contents.running, contents.defined, contents.more) == (True, True, 0)
    assert [(item.path, item.kind) for item in contents.items] == [(host.scope.overlay("web1"), "file")]
    assert (found.deleted, host.store.names()) == ([], ["web1"])


def test_the_result_names_the_vms_that_were_deleted(host: OwnHost) -> None:
    for name in ("web1", "web2", "web3"):
        make(host, name)
    done = delete.delete(host, ["web1", "web3"])
    assert (done.deleted, done.kept, done.failed) == (["web1", "web3"], [], {})
    assert host.store.names() == ["web2"]


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_a_vm_that_recovery_removes_first_counts_as_deleted(host: OwnHost, verb: str) -> None:
    for name in ("web1", "web2"):
        make(host, name)
    # A command for web1 was killed.
    intents.begin(host, "web1", verb)
    assert delete.delete(host, ["web1", "web2"]).deleted == ["web1", "web2"]
    assert (host.store.names(), intents.pending(host.scope)) == ([], [])
    with pytest.raises(NotFoundError):
        delete.delete(host, ["web1"])


def test_a_vm_that_another_delete_removes_first_does_not_exist(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(host, "web1")
    monkeypatch.setattr(locks, "REPORT_AFTER", 0.0)
    raised: list[NotFoundError] = []

    def second() -> None:
        try:
            delete.delete(host, ["web1"])
        except NotFoundError as error:
            raised.append(error)

    other = threading.Thread(target=second)
    with locks.locked(host, ["web1"]):
        intent = intents.begin(host, "web1", "delete")
        other.start()
        deadline = time.monotonic() + 10
        while not host.told and time.monotonic() < deadline:
            time.sleep(0.01)
        assert removal.remove_all(host, ["web1"]) == {}
        intents.end(intent)
    other.join()
    assert [str(error) for error in raised] == ["VM 'web1' does not exist"]

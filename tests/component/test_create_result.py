"""What `create` returns, and how it waits for a guest."""

from __future__ import annotations

import pytest
from own_host import OwnHost

from qsysd.errors import InvalidError, TimeoutExpired
from qsysd.host import guest_ssh
from qsysd.host.context import Host
from qsysd.operations import create

VM = "name: web1\nimage: tiny\nseed: false\n"


@pytest.mark.parametrize(
    ("more", "start", "message", "hint"),
    [
        ("nics: []\n", True, "--wait needs a VM with a network", "qsysd console web1"),
        ("", False, "--wait needs a VM that is started", "leave out --no-start or --wait"),
    ],
)
def test_a_guest_that_cannot_answer_is_refused_before_anything_is_created(
    host: OwnHost, more: str, start: bool, message: str, hint: str
) -> None:
    with pytest.raises(InvalidError, match=message) as caught:
        create.create(host, VM + more, start=start, wait=True)
    assert caught.value.hint and hint in caught.value.hint
    assert host.store.names() == []


def test_the_result_holds_the_vm_and_the_time_until_ssh_answered(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_ssh, "wait", lambda host, name, timeout: timeout / 2)
    created = create.create(host, {"name": "web1", "image": "tiny", "seed": False}, wait=True, wait_timeout=8)
    assert (created.vm.name, created.vm.active, created.answered_after) == ("web1", "active", 4)
    assert created.address == created.vm.ip != ""
    assert create.create(host, VM.replace("web1", "web2"), start=False).answered_after is None


def test_a_vm_that_does_not_answer_in_time_is_kept(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(host: Host, name: str, timeout: float) -> float:
        raise TimeoutExpired(f"{name}: no answer on SSH")

    monkeypatch.setattr(guest_ssh, "wait", wait)
    with pytest.raises(TimeoutExpired):
        create.create(host, VM, wait=True)
    assert host.store.names() == ["web1"]


def test_the_address_is_reported_before_the_wait_for_ssh(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[str] = []

    def wait(_host: Host, _name: str, _timeout: float) -> float:
        before.extend(host.told)
        return 4

    monkeypatch.setattr(guest_ssh, "wait", wait)
    created = create.create(host, VM, wait=True)
    assert before == host.told == [f"web1: running at {created.address}"]
    host.told.clear()
    create.create(host, VM.replace("web1", "web2"))
    assert host.told == []

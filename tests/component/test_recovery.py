"""What killed commands left is repaired by its verb, each VM by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from own_host import OwnHost
from test_transaction import Holder, plant_strange

from qsysd.errors import QsysdError
from qsysd.host import intents, locks, recovery
from qsysd.host.recovery import REPAIRS, Repair
from qsysd.operations import create, delete, doctor, power, query, setup
from qsysd.operations.list import list_vms

VM = "name: {}\nimage: tiny\nmemory: 64M\ndisks: [{{size: 1M}}]\nnics: [{{}}]\n"


class Repairs:
    """Repairs that only record, or raise `errors` by VM."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.errors: dict[str, Exception] = {}
        for verb in ("create", "delete", "edit"):
            monkeypatch.setitem(REPAIRS, ("vm", verb), Repair(self._repair(verb), f"{verb} repaired"))

    def _repair(self, verb: str):  # type: ignore[no-untyped-def]
        def repair(_host: object, name: str) -> None:
            if name in self.errors:
                raise self.errors[name]
            self.done.append(f"{verb} {name}")

        return repair


@pytest.fixture
def repairs(monkeypatch: pytest.MonkeyPatch) -> Repairs:
    """Return a table of repairs that only record."""
    return Repairs(monkeypatch)


def pending(host: OwnHost) -> list[str]:
    """Return the files of the intents that are left."""
    return [os.path.basename(intent.path) for intent in intents.pending(host.scope)]


def old_form(host: OwnHost, name: str, text: str) -> None:
    """Leave an intent as older versions wrote it."""
    Path(host.scope.intents_dir, f"{name}.json").write_text(text, encoding="utf-8")


def test_each_verb_has_a_repair_of_its_own(host: OwnHost, repairs: Repairs) -> None:
    for name, verb in (("web1", "create"), ("web2", "delete"), ("web3", "edit")):
        intents.begin(host, name, verb)
    old_form(host, "web4", '{"verb": "delete"}')
    old_form(host, "web5", "")
    assert len(recovery.recover(host)) == 5
    assert repairs.done == ["create web1", "delete web2", "edit web3", "delete web4", "create web5"]
    assert "web3: a edit was killed; edit repaired" in host.told
    assert pending(host) == []
    assert recovery.recover(host) == []


def test_an_intent_of_another_version_is_left_alone_and_reported(host: OwnHost) -> None:
    create.create(host, VM.format("web1"), "x")
    for name in ("vm.web1.clone.json", "network.default.create.json"):
        Path(host.scope.intents_dir, name).write_text('{"pid": 1}', encoding="utf-8")
    assert recovery.recover(host) == []
    assert pending(host) == ["network.default.create.json", "vm.web1.clone.json"]
    assert power.stop(host, ["web1"])[0].error is None
    found = [finding for finding in doctor.examine(host) if "another version of qsysd" in finding.message]
    assert [finding.subject for finding in found] == ["default", "web1"]
    assert found[1].remedy and found[1].remedy.endswith("intents/vm.web1.clone.json")


def test_what_is_no_intent_stops_no_verb_and_is_reported(host: OwnHost) -> None:
    names = plant_strange(host.scope)
    create.create(host, VM.format("web1"), "x")
    assert [vm.name for vm in list_vms(host)] == ["web1"]
    assert query.status(host, ["web1"])[0].problem is None
    for verb in (power.stop, power.start, power.kill):
        assert verb(host, ["web1"])[0].error is None
    setup.setup(host)
    assert recovery.recover(host) == []
    found = [finding for finding in doctor.examine(host) if finding.subject == "intents"]
    assert len(found) == len(names) == 12
    assert all(finding.remedy for finding in found)
    assert not delete.delete(host, ["web1"]).failed
    assert not host.store.names()


@pytest.mark.parametrize(
    "error",
    [
        QsysdError("no bus"), OSError(39, "Directory not empty"), RecursionError("too deep"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), ValueError("odd"), KeyError("x"),
    ],
)  # fmt: skip
def test_a_vm_that_cannot_be_repaired_is_named_and_left_and_the_others_go_on(
    host: OwnHost, repairs: Repairs, error: Exception
) -> None:
    repairs.errors["web1"] = error
    for name in ("web1", "web2"):
        intents.begin(host, name, "delete")
    first, second = recovery.recover(host)
    assert (first.error, second.error) == (error, None)
    assert pending(host) == ["vm.web1.delete.json"]
    assert repairs.done == ["delete web2"]
    assert "web1: the delete that was killed cannot be repaired yet: " in host.told[0]
    create.create(host, VM.format("web3"), "x")
    assert power.stop(host, ["web3"])[0].error is None


def test_a_lock_that_is_damaged_blocks_no_other_vm(host: OwnHost, repairs: Repairs) -> None:
    os.makedirs(f"{host.scope.lock('web1')}/in-the-way")
    for name in ("web1", "web2"):
        intents.begin(host, name, "delete")
    first, second = recovery.recover(host)
    assert str(first.error) == f"{host.scope.lock('web1')}: Is a directory" and second.error is None
    assert repairs.done == ["delete web2"]


def test_a_command_that_is_at_work_is_left_alone(host: OwnHost, repairs: Repairs) -> None:
    intents.begin(host, "web1", "create")
    holder = Holder("web1").wait()
    try:
        assert recovery.recover(host) == []
        assert pending(host) == ["vm.web1.create.json"]
    finally:
        holder.kill()
    assert len(recovery.recover(host)) == 1
    assert repairs.done == ["create web1"]


def test_what_is_being_repaired_is_locked(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    intents.begin(host, "web1", "create")
    free: list[bool] = []

    def repair(host: OwnHost, name: str) -> None:
        with locks.lock_if_free(host, name) as held:
            free.append(held)

    monkeypatch.setitem(REPAIRS, ("vm", "create"), Repair(repair, ""))  # type: ignore[arg-type]
    recovery.recover(host)
    assert free == [False]


def test_a_command_that_has_just_ended_well_is_not_undone(
    host: OwnHost, repairs: Repairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # its intent is listed, and removed when its lock is ours
    begun = intents.begin(host, "web1", "create")
    real = locks._try_lock

    def try_lock(descriptor: int, exclusive: bool) -> bool:
        intents.end(begun)
        return real(descriptor, exclusive)

    monkeypatch.setattr(locks, "_try_lock", try_lock)
    assert recovery.recover(host) == []
    assert repairs.done == []

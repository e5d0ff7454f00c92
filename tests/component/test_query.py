"""list and status."""

from __future__ import annotations

import os
from pathlib import Path

from own_host import OwnHost
from vms import UNIT

from qsysd.host import intents
from qsysd.operations import query
from qsysd.operations.list import list_vms
from qsysd.store import description


def test_list_queries_systemd_once_for_all_vms(vm: OwnHost) -> None:
    found = list_vms(vm)
    assert [(each.name, each.active, each.guest, each.pid) for each in found] == [
        ("web1", "inactive", None, None), ("web2", "inactive", None, None),
    ]  # fmt: skip
    assert len(vm.fake.calls) == 1


def test_list_and_status_do_not_recover(vm: OwnHost) -> None:
    intents.begin(vm, "web2", "delete")
    assert len(list_vms(vm)) == 2
    assert os.path.exists(vm.scope.intent("web2", "delete"))
    (status,) = query.status(vm, ["web2"])
    assert status.pending == [
        "delete: a command was killed before its end; the next changing command repairs it"
    ]


def test_a_vm_with_a_broken_definition_is_listed_and_its_status_has_the_error(vm: OwnHost) -> None:
    Path(vm.scope.definition("web1")).write_text("name: web1\nmemory: x\n", encoding="utf-8")
    os.unlink(vm.scope.environment("web1"))
    assert [each.name for each in list_vms(vm)] == ["web1", "web2"]
    (status,) = query.status(vm, ["web1"])
    assert status.problem
    assert "web1.yaml:2: memory" in status.problem


def test_a_rendering_that_differs_from_the_running_one_is_pending(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    os.makedirs(vm.scope.started_dir)
    note = Path(vm.scope.started_record("web1"))
    note.write_text(f"{vm.store.summary('web1').digest}\n", encoding="utf-8")
    described = description.of_rendered(vm.store, "web1")
    assert query.pending(vm, "web1", described, vm.store.started("web1")) == []
    note.write_text("0123456789abcdef\n", encoding="utf-8")
    assert query.pending(vm, "web1", described, vm.store.started("web1"))[0].startswith("restart: ")
    assert query.pending(vm, "web1", described, None) == []


def test_status_shows_the_values_in_use_and_the_pending_ones(vm: OwnHost) -> None:
    vm.fake.set(UNIT, "active", "running")
    os.makedirs(vm.scope.started_dir)
    note = Path(vm.scope.started_record("web1"))
    lines = ("0123456789abcdef", "QSYSD_MEMORY_MIB=512", "QSYSD_CPUS=1", "QSYSD_ACCELERATOR=kvm")
    note.write_text("\n".join(lines) + "\n", encoding="ascii")
    (shown,) = query.status(vm, ["web1"])
    assert (shown.memory_mib, shown.pending_memory_mib) == (512, 1024)
    assert (shown.cpus, shown.pending_cpus) == (1, None)
    assert shown.accelerator == "kvm"
    assert [disk.size for disk in shown.disks] == [65536]
    # its note is of no importance once it is off
    vm.fake.set(UNIT, "inactive", "dead")
    (shown,) = query.status(vm, ["web1"])
    assert (shown.memory_mib, shown.pending_memory_mib, shown.accelerator) == (1024, None, "")

"""edit: what it changes, renders and refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from own_host import OwnHost
from samples import KEY
from vms import make

from qsysd import network
from qsysd.config import dump
from qsysd.errors import InvalidError, QsysdError
from qsysd.operations import edit as edit_verb
from qsysd.operations import power


def test_edit_reports_changes_that_take_effect_at_the_first_boot_only(vm: OwnHost) -> None:
    before = vm.store.require("web1")
    edit_verb.edit(vm, "web1", re.sub("user: .*", f"user: bob\nssh_keys: [{KEY}]", before), before=before)
    keys, user = vm.told
    assert "ssh_keys takes effect at the guest's first boot only" in keys
    assert "user is the login of qsysd ssh; it is not created in the guest" in user
    vm.told.clear()
    before = vm.store.require("web1")
    edit_verb.edit(vm, "web1", before.replace("1G", "2G"), before=before)
    assert vm.told == []


def edit(host: OwnHost, name: str, old: str, new: str) -> edit_verb.Edited:
    before = host.store.require(name)
    assert old in before
    return edit_verb.edit(host, name, before.replace(old, new), before=before)


def test_an_edit_renders_all_files(host: OwnHost) -> None:
    make(host)
    edit(host, "web1", "stop_timeout: 90s", "stop_timeout: 7s\ncpu: host")
    assert edit_verb.render(host, ["web1"], check=True).differences == {"web1": []}
    environment = Path(host.scope.environment("web1")).read_text(encoding="utf-8")
    assert "QSYSD_STOP_TIMEOUT=7\n" in environment
    assert "TimeoutStopSec=37s" in Path(host.scope.drop_in("web1")).read_text(encoding="utf-8")


def test_an_edit_of_a_running_vm_needs_a_restart(host: OwnHost) -> None:
    make(host)
    assert edit(host, "web1", "cpus: 1", "cpus: 2").restart
    power.kill(host, ["web1"])
    assert edit(host, "web1", "cpus: 2", "cpus: 3").restart is False


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: web1", "name: web2", "is not the file's name"),
        ("image: tiny", "image: other", "image of web1 cannot be changed"),
        ("size: 1M", "size: 2M", r"disks\[0\].size of web1 cannot be changed"),
        ("size: 1M", "size: 1M\n- size: 1M", "disks of web1 cannot be changed"),
        ("name: disk0", "name: disk1", "disks of web1 cannot be changed"),
        ("seed: true", "seed: false", "seed of web1 cannot be changed"),
        ("cpus: 1", "cpus: none", "'none' is not a whole number"),
        ("cpus: 1", "depends_on: [nobody]", "depends on 'nobody'"),
    ],
)
def test_an_edit_of_what_cannot_be_changed_is_refused_and_nothing_changes(
    host: OwnHost, old: str, new: str, words: str
) -> None:
    make(host)
    before = host.store.require("web1")
    with pytest.raises(QsysdError, match=words):
        edit(host, "web1", old, new)
    assert host.store.require("web1") == before


def test_an_edit_keeps_uuid_and_machine_type(host: OwnHost) -> None:
    spec = make(host)
    text = "".join(
        line
        for line in host.store.require("web1").splitlines(keepends=True)
        if not line.startswith(("uuid", "machine"))
    )
    edit_verb.edit(host, "web1", text, before=host.store.require("web1"))
    assert host.store.load("web1") == spec


def test_an_edit_pins_an_alias_of_a_machine_type(host: OwnHost) -> None:
    spec = make(host)
    edit(host, "web1", f"machine: {spec.machine}", "machine: q35")
    assert host.store.load("web1").machine == spec.machine


def test_an_edit_of_an_outdated_text_is_refused(host: OwnHost) -> None:
    make(host)
    before = host.store.require("web1")
    edit_verb.edit(host, "web1", before.replace("cpus: 1", "cpus: 2"), before=before)
    with pytest.raises(QsysdError, match="was changed by another command meanwhile"):
        edit_verb.edit(host, "web1", before.replace("cpus: 1", "cpus: 3"), before=before)
    assert host.store.load("web1").cpus == 2


def test_a_cycle_of_dependencies_is_refused(host: OwnHost) -> None:
    make(host, "db1", start=False)
    make(host, "app1", "depends_on: [db1]\n", start=False)
    make(host, "web1", "depends_on: [app1]\n", start=False)
    with pytest.raises(InvalidError, match="db1 depends on itself: db1 → web1 → app1 → db1"):
        edit(host, "db1", "seed: true\n", "seed: true\ndepends_on: [web1]\n")
    # a diamond is none
    edit(host, "web1", "- app1\n", "- db1\n- app1\n")


def test_the_host_entry_of_a_removed_nic_is_removed(host: OwnHost) -> None:
    spec = make(host, more="nics: [{}, {}]\n")
    assert len(network.hosts(host.scope, "default", "web1")) == 2
    before = host.store.require("web1")
    kept = dump.dump_vm(replace(spec, nics=spec.nics[:1]))
    edit_verb.edit(host, "web1", kept, before=before)
    assert network.hosts(host.scope, "default", "web1") == [(spec.nics[0].mac, spec.nics[0].address)]
    assert "KillUnit qsysd-dhcp@default.service main 1" in host.fake.calls

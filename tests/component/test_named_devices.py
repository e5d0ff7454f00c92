"""Named disks and NICs on a host: removing one changes nothing of the others."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from own_host import OwnHost

from qsysd import interface_names
from qsysd.config import load
from qsysd.errors import ExistsError
from qsysd.model.vm import VMSpec
from qsysd.operations import create, delete, query
from qsysd.operations import edit as edit_verb
from qsysd.operations.list import list_vms
from qsysd.runtime.ports import parse_ports

NAMED = """\
name: web1
image: tiny
disks: [{name: root, size: 1M}, {name: data, size: 2M}]
nics: [{name: lan}, {name: mgmt}]
"""
UNNAMED = "name: web1\nimage: tiny\ndisks: [{size: 1M}, {size: 2M}]\nnics: [{}, {}]\n"


def make(host: OwnHost, text: str = NAMED) -> VMSpec:
    return host.store.load(create.create(host, text, "x.yaml", start=False).vm.name)


def edit(host: OwnHost, text: str, name: str = "web1") -> VMSpec:
    edit_verb.edit(host, name, text, before=host.store.require(name))
    return host.store.load(name)


def without_names(host: OwnHost) -> str:
    """Return the definition as versions before named devices wrote it, and put it in place."""
    text = re.sub("- name: (disk|net)[0-9]\n  ", "- ", host.store.require("web1"))
    Path(host.scope.definition("web1")).write_text(text, encoding="utf-8")
    edit_verb.render(host, ["web1"])
    return text


def without_first_nic(text: str) -> str:
    before, first, rest = re.split("(?<=nics:\n)(- (?:[^-]|-(?! ))*)", text, maxsplit=1)
    assert "mac:" in first and "mac:" in rest
    return before + rest


def taps(host: OwnHost) -> dict[str, str]:
    """Return the TAPs that the helper creates at the next start, each with its MAC."""
    nics = re.search("^QSYSD_NICS=(.*)$", Path(host.scope.environment("web1")).read_text(), re.MULTILINE)
    assert nics
    return {port.tap: port.mac for port in parse_ports(nics[1])}


def test_devices_are_stored_by_name(host: OwnHost) -> None:
    spec = make(host)
    directory = host.scope.vm_dir("web1")
    assert {"root.qcow2", "data.qcow2"} <= set(os.listdir(directory))
    assert taps(host) == {"qv-web1-lan": spec.nics[0].mac, "qv-web1-mgmt": spec.nics[1].mac}
    (status,) = query.status(host, ["web1"])
    assert [(disk.path, disk.size) for disk in status.disks] == [
        (f"{directory}/root.qcow2", 1024**2),
        (f"{directory}/data.qcow2", 2 * 1024**2),
    ]
    assert [(nic.name, nic.tap) for nic in status.nics] == [
        ("lan", "qv-web1-lan"),
        ("mgmt", "qv-web1-mgmt"),
    ]
    assert status.problem is None
    os.unlink(f"{directory}/data.qcow2")
    assert list_vms(host)[0].problem == "no disk"
    delete.delete(host, ["web1"])
    assert not os.path.exists(directory)


def test_a_nic_keeps_all_it_has_when_the_one_before_it_is_removed(host: OwnHost) -> None:
    lan, mgmt = make(host).nics
    spec = edit(host, without_first_nic(host.store.require("web1")))
    assert spec.nics == (mgmt,)
    assert taps(host) == {"qv-web1-mgmt": mgmt.mac}
    added = edit(host, host.store.require("web1").replace("nics:\n", "nics:\n- name: lan\n"))
    assert added.nics[1] == mgmt
    assert added.nics[0].mac != lan.mac


def test_a_nic_without_a_name_keeps_its_tap_when_the_one_before_it_is_removed(host: OwnHost) -> None:
    first, second = make(host, UNNAMED).nics
    text = without_names(host)
    assert taps(host) == {"qv-web1-0": first.mac, "qv-web1-1": second.mac}
    assert edit(host, without_first_nic(text)).nics == (second,)
    assert second.name == "net1"
    assert taps(host) == {"qv-web1-1": second.mac}


def test_a_nic_that_is_added_gets_a_name_that_no_other_has(host: OwnHost) -> None:
    first, second = make(host, UNNAMED).nics
    text = without_names(host)
    spec = edit(host, text.replace("nics:\n", "nics:\n- network: default\n"))
    assert spec.nics[1:] == (first, second)
    assert spec.nics[0].name == "net2"


def test_a_name_that_is_given_is_taken(host: OwnHost) -> None:
    first, second = make(host, UNNAMED).nics
    spec = edit(host, without_names(host).replace("nics:\n- ", "nics:\n- name: net1\n  "))
    assert [(nic.name, nic.mac) for nic in spec.nics] == [("net1", first.mac), ("net0", second.mac)]


def test_an_upgrade_changes_nothing_of_a_vm_without_names(host: OwnHost) -> None:
    make(host, UNNAMED)
    digest = host.store.summary("web1").digest
    text = without_names(host)
    assert host.store.summary("web1").digest == digest
    assert host.store.summary("web1").disks == ("disk0", "disk1")
    assert host.store.require("web1") == text
    assert not edit_verb.render(host, ["web1"], check=True).differences["web1"]
    spec = load.parse_vm(text, "web1.yaml")
    assert [disk.name for disk in spec.disks] == ["disk0", "disk1"]
    assert [nic.name for nic in spec.nics] == ["net0", "net1"]


def test_a_delete_ends_the_leases_of_nics_that_were_removed_from_a_definition(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    lan, mgmt = make(host).nics
    other = make(host, "name: web2\nimage: tiny\n").nics[0]
    running = other.mac.replace("52:54:00", "52:54:01")
    path = Path(host.scope.leases("default"))
    path.parent.mkdir(parents=True, exist_ok=True)
    leases = [(nic.mac, nic.address) for nic in (lan, mgmt, other)] + [(running, "10.83.0.99")]
    path.write_text("".join(f"1 {mac} {address} * *\n" for mac, address in leases), encoding="utf-8")
    host.fake.set("qsysd-dhcp@default.service", "inactive", "dead")
    # A NIC that was removed from the definition of a VM that runs.
    aliases = {"qv-web2-1": f"qsysd:web2:qv-web2-1,{running},qb-default,default,10.83.0.99"}
    monkeypatch.setattr("qsysd.runtime.taps.existing_taps", lambda: aliases)
    monkeypatch.setattr("qsysd.runtime.taps.unplug", lambda *_: None)
    edit(host, without_first_nic(host.store.require("web1")))
    delete.delete(host, ["web1"])
    assert path.read_text(encoding="utf-8") == "".join(
        f"1 {mac} {address} * *\n" for mac, address in leases[2:]
    )


def test_two_vms_cannot_have_one_tap(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    # The names of TAPs are digests where they would be too long.
    monkeypatch.setattr(interface_names, "sha256_digits", lambda _: "0" * 64)
    make(host, "name: application1\nimage: tiny\n")
    nic = "nics: [{name: storage1}]\n"
    make(host, f"name: web1\nimage: tiny\n{nic}")
    with pytest.raises(ExistsError, match="the TAP qv_000000000000 belongs to the VM 'web1'"):
        make(host, f"name: web2\nimage: tiny\n{nic}")
    with pytest.raises(ExistsError, match="the TAP qv_0000000000-0 belongs to the VM 'application1'"):
        make(host, "name: application2\nimage: tiny\n")
    make(host, "name: web2\nimage: tiny\nnics: []\n")
    with pytest.raises(ExistsError, match="belongs to the VM 'web1'"):
        edit(host, host.store.require("web2").replace("nics: []\n", nic), "web2")

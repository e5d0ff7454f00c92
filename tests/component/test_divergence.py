"""What is on disk, what is defined and what runs can differ: it is shown, and can be put right."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from own_host import OwnHost, removed_by_delete

from qsysd import network, paths
from qsysd.errors import ExistsError, InvalidError, NotFoundError, StateError
from qsysd.host import divergence, rendering
from qsysd.host.outcomes import Outcome
from qsysd.operations import create, delete, doctor, edit, power, query, setup
from qsysd.operations.list import list_vms
from qsysd.operations.setup import Action, Step
from qsysd.store import Store
from qsysd.store.claims import Claims, of_others

UNIT = paths.unit("web1")


@pytest.fixture
def vm(host: OwnHost) -> OwnHost:
    """Return a host with the VM web1, which is off."""
    create.create(host, "name: web1\nimage: tiny\nseed: false\n", "x", start=False)
    return host


def copied(host: OwnHost, *without: str) -> Path:
    """Copy the definition of web1 to web2's place, but for the lines with these words; return its path."""
    path = Path(host.scope.definition("web2"))
    lines = host.store.require("web1").replace("name: web1", "name: web2").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not any(word in line for word in without)))
    return path


def problems(host: OwnHost) -> dict[str, str | None]:
    return {listed.name: listed.problem for listed in list_vms(host)}


def found(host: OwnHost) -> str:
    return "\n".join(f"{each.vm}: {each.message}" for each in divergence.find(host))


def remove_definition(host: OwnHost, *, state: str = "active") -> None:
    host.fake.set(UNIT, state, "running")
    os.unlink(host.scope.definition("web1"))


# without a definition


def test_a_vm_without_a_definition_is_listed_and_named_by_doctor(vm: OwnHost) -> None:
    remove_definition(vm)
    (listed,) = list_vms(vm)
    assert (listed.name, listed.active, listed.problem) == ("web1", "active", "no definition")
    (status,) = query.status(vm, ["web1"])
    assert status.problem is not None and "web1 has no definition" in status.problem
    assert "web1: it has no definition" in found(vm)
    assert "it runs, and it starts at host boot" in found(vm)


@pytest.mark.parametrize("trace", ["unit", "directory", "link", "environment"])
def test_whatever_is_left_of_a_vm_is_listed_and_deleted(host: OwnHost, trace: str) -> None:
    scope = host.scope
    if trace == "unit":
        host.fake.set(UNIT, "active", "running")
    elif trace == "directory":
        os.mkdir(scope.vm_dir("web1"))
    elif trace == "link":
        host.fake.enable([UNIT])
    else:
        Path(scope.environment("web1")).touch()
    assert problems(host) == {"web1": "no definition"}
    assert removed_by_delete(host, "web1")
    assert delete.delete(host, ["web1"]).failed == {}
    assert problems(host) == {}


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_a_vm_without_a_definition_is_switched_off(vm: OwnHost, verb: str) -> None:
    remove_definition(vm)
    (outcome,) = getattr(power, verb)(vm, ["web1"])
    assert outcome.error is None
    assert vm.fake.state(UNIT).active == "inactive"
    (outcome,) = power.disable(vm, ["web1"])
    assert not list_vms(vm)[0].enabled


@pytest.mark.parametrize("verb", ["start", "restart", "enable", "pause"])
def test_a_vm_without_a_definition_is_not_started(vm: OwnHost, verb: str) -> None:
    remove_definition(vm, state="inactive")
    with pytest.raises(NotFoundError, match="web1 has no definition") as caught:
        getattr(power, verb)(vm, ["web1"])
    assert "qsysd delete web1" in (caught.value.hint or "")


def test_what_is_left_of_a_vm_is_listed_in_order(vm: OwnHost) -> None:
    os.mkdir(vm.scope.vm_dir("a1"))
    assert list(problems(vm)) == ["a1", "web1"]


def test_other_names_are_still_not_found(vm: OwnHost) -> None:
    for name in ("web2", "../web1", ""):
        for verb in (power.stop, power.kill, delete.delete):
            with pytest.raises(NotFoundError, match=r"VM .* does not exist"):
                verb(vm, [name])


# without a disk


@pytest.mark.parametrize("missing", ["disk", "directory"])
def test_a_vm_without_its_disk_is_listed_and_named_by_doctor(vm: OwnHost, missing: str) -> None:
    assert problems(vm) == {"web1": None}
    if missing == "disk":
        os.unlink(vm.scope.overlay("web1"))
    else:
        shutil.rmtree(vm.scope.vm_dir("web1"))
    assert problems(vm) == {"web1": "no disk"}
    assert vm.scope.vm_dir("web1") in found(vm)


# a copied definition


def render(host: OwnHost, names: list[str]) -> None:
    """Render VMs; raise the first error."""
    for error in edit.render(host, names).failed.values():
        raise error


def test_a_copied_definition_is_refused_and_named(vm: OwnHost) -> None:
    copied(vm)
    assert problems(vm) == {"web1": None, "web2": "no disk"}
    moved = f"mv {vm.scope.definition('web2')} to another directory, then: qsysd create --file FILE"
    for verb in (render, lambda host, names: raise_first(power.start(host, names))):
        with pytest.raises(ExistsError, match=r"the UUID .* belongs to the VM 'web1'") as caught:
            verb(vm, ["web2"])
        assert caught.value.hint == f"if web2 is a copy: {moved}"
    assert {each.remedy for each in divergence.find(vm) if each.vm == "web1"} == {f"if it is a copy: {moved}"}
    assert network.hosts(vm.scope, "default", "web2") == []
    assert "web1: the UUID" in found(vm) and "also belongs to web2" in found(vm)
    assert "the address 10." in found(vm) and "the MAC 52:54:00" in found(vm)


def test_what_others_claim_is_read_once_for_all_changed_definitions(
    vm: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("web2", "web3"):
        create.create(vm, f"name: {name}\nimage: tiny\nseed: false\n", "x", start=False)
    for name in ("web1", "web2", "web3"):
        path = Path(vm.scope.definition(name))
        path.write_text(path.read_text() + "# changed by hand\n")
    read: list[str] = []

    def counted(store: Store, name: str = "") -> list[Claims]:
        read.append(name)
        return of_others(store, name)

    monkeypatch.setattr(rendering, "of_others", counted)
    assert set(edit.render(vm, ["web1", "web2", "web3"]).differences) == {"web1", "web2", "web3"}
    assert len(read) == 1


def test_the_copy_is_to_be_moved_whatever_its_name(vm: OwnHost) -> None:
    path = copied(vm)
    path.write_text(path.read_text().replace("web2", "a1"))
    path.rename(path.with_name("a1.yaml"))
    remedies = {each.remedy for each in divergence.find(vm) if each.vm == "web1"}
    assert [f"mv {vm.scope.definition('a1')} to" in remedy for remedy in remedies] == [True]


def raise_first(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error


def test_a_definition_that_create_has_not_completed_is_refused_with_what_to_do(vm: OwnHost) -> None:
    path = copied(vm, "uuid")
    with pytest.raises(InvalidError, match="no VM was created from it") as caught:
        render(vm, ["web2"])
    assert f"mv {path}" in (caught.value.hint or "")
    with pytest.raises(ExistsError, match="no VM was created from it"):
        create.create(vm, path.read_text(), str(path), start=False)
    # As the hints say, without what is web1's.
    copied(vm, "uuid", "mac:", "address:").rename("web2.yaml")
    create.create(vm, Path("web2.yaml").read_text(), "web2.yaml", start=False)
    assert problems(vm) == {"web1": None, "web2": None}
    assert found(vm) == ""


def test_deleting_a_copy_keeps_the_lease_of_the_original(vm: OwnHost) -> None:
    vm.fake.set(paths.dhcp_unit("default"), "inactive", "dead")
    nic = vm.store.load("web1").nics[0]
    leases = Path(vm.scope.leases("default"))
    leases.parent.mkdir(parents=True)
    leases.write_text(f"4000000000 {nic.mac} {nic.address} web1 *\n")
    copied(vm)
    # As an older version rendered it.
    assert nic.address is not None
    network.write_hosts(vm.scope, "default", "web2", [(nic.mac, nic.address)])
    delete.delete(vm, ["web2"])
    assert nic.mac in leases.read_text()
    assert network.hosts(vm.scope, "default", "web1") == [(nic.mac, nic.address)]
    delete.delete(vm, ["web1"])
    assert nic.mac not in leases.read_text()


def test_an_address_changed_by_hand_to_another_vms_is_refused(vm: OwnHost) -> None:
    create.create(vm, "name: web2\nimage: tiny\nseed: false\n", "x", start=False)
    first, second = (vm.store.load(name).nics[0].address for name in ("web1", "web2"))
    path = Path(vm.scope.definition("web2"))
    path.write_text(path.read_text().replace(str(second), str(first)))
    with pytest.raises(ExistsError, match=f"{first} belongs to the VM 'web1'"):
        render(vm, ["web2"])


# another image


def test_an_image_that_is_another_than_at_create_is_named_by_doctor(vm: OwnHost) -> None:
    digest = vm.images.get("tiny").sha256
    assert vm.store.load("web1").image_digest == digest
    assert f"image_digest: {digest}" in vm.store.require("web1")
    note = Path(vm.scope.image_metadata("tiny"))
    note.write_text(note.read_text().replace(digest, "f" * 64))
    assert "web1: image tiny is not the one that its disk was created on" in found(vm)


def test_the_digest_of_the_image_can_be_removed_but_not_replaced(vm: OwnHost) -> None:
    before = vm.store.require("web1")
    digest = str(vm.store.load("web1").image_digest)
    text = before.replace(digest, "f" * 64).replace("seed: false", "seed: true")
    with pytest.raises(InvalidError) as caught:
        edit.edit(vm, "web1", text, before=before)
    assert caught.value.message.splitlines() == [
        "image_digest of web1 can only be removed",
        "seed of web1 cannot be changed: it is on the VM's disk",
    ]
    edit.edit(vm, "web1", before.replace(f"image_digest: {digest}\n", ""), before=before)
    assert vm.store.load("web1").image_digest is None
    assert found(vm) == ""


# another subnet


def test_set_up_refuses_a_subnet_that_cuts_vms_off_and_names_them(vm: OwnHost) -> None:
    address = vm.store.load("web1").nics[0].address
    definition = Path(vm.scope.network_definition("default"))
    text = definition.read_text()
    subnet = vm.store.load_network("default").subnet
    definition.write_text(text.replace(subnet, "10.99.0.0/24"))
    with pytest.raises(StateError, match=rf"would cut off web1 \({address}\)") as caught:
        setup.setup(vm)
    assert str(definition) in (caught.value.hint or "")
    assert subnet.partition("/")[0].rpartition(".")[0] in Path(vm.scope.dnsmasq_config("default")).read_text()
    assert f"web1: its address {address} is not valid for a VM on network default" in found(vm)
    # A larger one, or one without VMs, is taken.
    definition.write_text(text)
    setup.setup(vm)
    delete.delete(vm, ["web1"])
    definition.write_text(text.replace(subnet, "10.99.0.0/24"))
    assert Step(Action.RENDERED_NETWORK, "default") in setup.setup(vm).steps


def test_a_subnet_that_is_not_in_effect_is_named_and_gets_no_vms(vm: OwnHost) -> None:
    definition = Path(vm.scope.network_definition("default"))
    subnet = vm.store.load_network("default").subnet
    definition.write_text(definition.read_text().replace(subnet, "10.99.0.0/24"))
    with pytest.raises(StateError, match=r"the subnet of its definition, 10\.99\.0\.0/24, is not in effect"):
        create.create(vm, "name: web2\nimage: tiny\nseed: false\n", "x", start=False)
    assert problems(vm) == {"web1": None}
    (finding,) = network_findings(vm)
    assert (finding.level, finding.remedy) == ("warning", "qsysd setup")


def network_findings(host: OwnHost) -> list[doctor.Finding]:
    return [finding for finding in doctor.examine(host) if finding.subject.startswith("network ")]


def test_host_access_that_is_not_in_effect_is_named(vm: OwnHost) -> None:
    definition = Path(vm.scope.network_definition("default"))
    definition.write_text(definition.read_text().replace("host_access: false", "host_access: true"))
    (finding,) = network_findings(vm)
    assert "its definition is not in effect" in finding.message
    assert vm.scope.network_rules("default") in finding.message
    setup.setup(vm)
    assert "not in effect" not in network_findings(vm)[0].message


# another network


def test_set_up_brings_up_each_network_that_is_defined(vm: OwnHost) -> None:
    Path(vm.scope.network_definition("lan")).write_text("name: lan\nsubnet: 10.99.0.0/24\n")
    lan = network_findings(vm)[1]
    assert (lan.subject, lan.remedy) == ("network lan", "qsysd setup")
    done = setup.setup(vm).steps
    started = Step(Action.STARTED_UNIT, paths.network_unit("lan"))
    assert {Step(Action.RENDERED_NETWORK, "lan"), started} <= set(done)
    assert vm.fake.state(paths.dhcp_unit("lan")).active == "active"
    assert setup.setup(vm).steps == []
    created = create.create(
        vm, "name: web2\nimage: tiny\nseed: false\nnics: [{network: lan}]\n", "x", start=False
    )
    assert created.address == "10.99.0.10"


def test_set_up_refuses_networks_that_overlap(vm: OwnHost) -> None:
    subnet = vm.store.load_network("default").subnet
    Path(vm.scope.network_definition("lan")).write_text(f"name: lan\nsubnet: {subnet}\n")
    with pytest.raises(ExistsError, match=r"network lan: the subnet .* overlaps"):
        setup.setup(vm)
    assert not os.path.exists(vm.scope.network_environment("lan"))


def test_nothing_diverges_on_a_host_that_is_in_order(vm: OwnHost) -> None:
    assert found(vm) == ""

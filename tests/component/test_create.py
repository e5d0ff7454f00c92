"""create: the parts of a new VM, and what is refused before anything is created."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from own_host import OwnHost
from samples import KEY, UUID
from vms import IMAGE_VM, files, make

from qsysd import network, paths
from qsysd.errors import ExistsError, HostError, InvalidError, NotFoundError, QsysdError
from qsysd.host import intents, keys, locks, unit_states
from qsysd.images.formats import read_header
from qsysd.model.vm import VMSpec
from qsysd.operations import create, delete
from qsysd.operations import edit as edit_verb
from qsysd.runtime import spawn


def test_create_creates_all_parts_of_a_vm(host: OwnHost) -> None:
    created = create.create(host, IMAGE_VM.format("web1"), "x.yaml", ssh_keys=[KEY])
    scope = host.scope
    spec = host.store.load("web1")
    assert (spec.user, spec.seed, spec.ssh_keys) == ("me", True, (KEY, keys.host_key(scope)))
    assert (created.vm.name, created.vm.active) == ("web1", "active")
    assert created.address == spec.nics[0].address
    assert spec.machine.startswith("pc-q35-")
    (nic,) = spec.nics
    assert network.hosts(scope, "default", "web1") == [(nic.mac, nic.address)]
    assert read_header(scope.overlay("web1")).backing_file == os.path.abspath(scope.image("tiny"))
    assert read_header(scope.overlay("web1")).virtual_size == 1024**2
    assert os.path.exists(scope.seed("web1"))
    assert os.path.lexists(os.path.join(scope.wants_dir, "qemu-vm@web1.service"))
    assert host.fake.state("qemu-vm@web1.service").active == "active"
    assert intents.pending(scope) == []
    assert edit_verb.render(host, ["web1"], check=True).differences == {"web1": []}
    assert host.told == []


@pytest.mark.parametrize(
    ("ssh_keys", "message"),
    [
        (["x"], "'x' is not an SSH public key"),
        ([f"{KEY}\nruncmd: [id]"], "is not an SSH public key"),
        ([f"{KEY} {'x' * 100}{number}" for number in range(900)], "too long for a definition"),
    ],
)
def test_keys_that_a_definition_cannot_contain_are_refused(
    host: OwnHost, ssh_keys: list[str], message: str
) -> None:
    before = files()
    with pytest.raises(InvalidError, match=message):
        create.create(host, IMAGE_VM.format("web1"), "x.yaml", ssh_keys=ssh_keys)
    assert files() == before


def test_the_files_of_a_vm_are_readable_for_root_only(host: OwnHost) -> None:
    before = os.umask(0)
    try:
        make(host)
    finally:
        os.umask(before)
    scope = host.scope
    for path in (
        scope.overlay("web1"),
        scope.seed("web1"),
        scope.definition("web1"),
        scope.environment("web1"),
    ):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, path
    assert stat.S_IMODE(os.stat(scope.vm_dir("web1")).st_mode) == 0o700


def test_create_resets_the_start_counter_and_does_not_reload_systemd(host: OwnHost) -> None:
    host.fake.set("qemu-vm@web1.service", "failed", "failed")
    make(host)
    calls = [call for call in host.fake.calls if "web1" in call]
    assert calls.index("ResetFailedUnit qemu-vm@web1.service") < calls.index("StartUnit qemu-vm@web1.service")
    assert "Reload" not in host.fake.calls


def test_a_vm_can_be_created_off_and_disabled(host: OwnHost) -> None:
    make(host, start=False, enable=False)
    assert host.fake.state("qemu-vm@web1.service").active == "inactive"
    assert unit_states.enabled_names(host) == set()


def test_a_kept_definition_creates_the_same_vm_again(host: OwnHost) -> None:
    first = make(host, more=f"uuid: {UUID}\n")
    text = host.store.require("web1")
    delete.delete(host, ["web1"])
    create.create(host, text, "web1.yaml")
    assert host.store.load("web1") == first


@pytest.mark.parametrize("more", ["", "disks: [{}]\n"])
def test_a_definition_with_a_uuid_needs_no_disk_size(host: OwnHost, more: str) -> None:
    text = f"name: web1\nuuid: {UUID}\nimage: tiny\n{more}"
    create.create(host, text, "x.yaml")
    assert host.store.load("web1").user == "me"
    assert os.path.exists(host.scope.overlay("web1"))


def test_each_nic_has_a_different_address_and_mac(host: OwnHost) -> None:
    specs = [make(host, f"web{number}", "nics: [{}, {}]\n", start=False) for number in range(4)]
    nics = [nic for spec in specs for nic in spec.nics]
    assert len({nic.address for nic in nics}) == len({nic.mac for nic in nics}) == 8


def test_vms_created_in_parallel_have_different_addresses(host: OwnHost) -> None:
    made: list[VMSpec] = []

    def one(name: str) -> None:
        made.append(make(OwnHost(host.scope), name, start=False, enable=False))

    threads = [threading.Thread(target=one, args=(f"web{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({spec.nics[0].address for spec in made}) == 6
    assert host.store.names() == [f"web{number}" for number in range(6)]


def test_of_several_creates_of_one_name_one_succeeds(host: OwnHost) -> None:
    outcomes: list[object] = []

    def one() -> None:
        try:
            outcomes.append(make(OwnHost(host.scope)))
        except QsysdError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(isinstance(outcome, VMSpec) for outcome in outcomes) == [False, False, True]
    assert outcomes.count(ExistsError) == 2
    assert edit_verb.render(host, ["web1"], check=True).differences == {"web1": []}


def test_the_address_of_a_vm_with_a_broken_definition_is_not_allocated(host: OwnHost) -> None:
    first = make(host, "web1").nics[0].address
    Path(host.scope.definition("web1")).write_text("name: [\n", encoding="utf-8")
    assert make(host, "web2").nics[0].address != first


def test_a_leased_address_is_not_allocated(host: OwnHost) -> None:
    subnet = host.store.load_network("default").subnet
    first = network.allocate(subnet, [])
    leases = Path(host.scope.leases("default"))
    leases.parent.mkdir()
    leases.write_text(f"4000000000 52:54:00:00:00:99 {first} old *\n", encoding="utf-8")
    assert make(host).nics[0].address != first


def test_a_user_that_differs_from_the_images_is_reported_as_a_login_only(host: OwnHost) -> None:
    Path(host.scope.image_metadata("tiny")).write_text("default_user: debian\n", encoding="utf-8")
    make(host, more="user: bob\n", start=False)
    (warning,) = host.told
    assert warning.startswith("warning: the user bob is not created in the guest")
    assert "the SSH keys are for debian" in warning
    host.told.clear()
    make(host, "web2", more="user: debian\n", start=False)
    assert host.told == []


def test_create_warns_of_more_memory_in_total_than_the_host_has(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running and enabled VMs count, one that is off and stays off does not."""
    pages = {"SC_PHYS_PAGES": 3 * 1024**3 // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    make(host, "running", enable=False)
    make(host, "enabled", start=False)
    make(host, "unused", start=False, enable=False)
    assert host.told == []
    make(host, "fourth")
    assert host.told == []
    make(host, "fifth")
    assert host.told == [
        "warning: with fifth, the running and enabled VMs have 4.0 GiB of memory, "
        "more than this host's 3.0 GiB"
    ]


def test_create_warns_of_a_vm_with_more_memory_than_the_host_has(host: OwnHost) -> None:
    make(host, more="memory: 900T\n", start=False, enable=False)
    assert len(host.told) == 1
    assert host.told[0].startswith("warning: with web1, the running and enabled VMs have ")


def test_create_first_removes_what_a_killed_create_left(host: OwnHost) -> None:
    make(host, start=False)
    intents.begin(host, "web1", "create")
    make(host)
    assert host.told == ["web1: a create was killed; the VM was removed"]
    assert host.fake.state("qemu-vm@web1.service").active == "active"


def refused(host: OwnHost, text: str, error: type[QsysdError], words: str) -> None:
    """Check that a definition is refused: by `create`, and before an image is built for it."""
    with pytest.raises(error, match=words):
        create.create(host, text, "x.yaml")


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ("image: nothing", NotFoundError, "image nothing does not exist"),
        ("image: tiny\ndepends_on: [db1]", NotFoundError, "depends on 'db1', which does not exist"),
        ("image: tiny\nnics: [{network: lan}]", NotFoundError, "network 'lan' does not exist"),
        (
            "image: tiny\nnics: [{address: 192.0.2.1}]",
            InvalidError,
            "is not valid for a VM on network default",
        ),
        ("image: tiny\nmemory: 1", InvalidError, "too little memory"),
        ("image: tiny\nmachine: nonesuch", HostError, "no machine type 'nonesuch'"),
        ("kernel: /nonexistent/vmlinuz", InvalidError, "file /nonexistent/vmlinuz does not exist"),
        ("kernel: /etc", InvalidError, "file /etc does not exist"),
    ],
)
def test_a_definition_that_is_not_possible_is_refused(
    host: OwnHost, unchanged: Callable[[], None], more: str, error: type[QsysdError], words: str
) -> None:
    refused(host, f"name: web1\n{more}\n", error, words)
    unchanged()


@pytest.mark.parametrize("which", [0, 1, -1])
def test_the_network_gateway_and_broadcast_addresses_are_refused(
    host: OwnHost, unchanged: Callable[[], None], which: int
) -> None:
    import ipaddress

    address = ipaddress.IPv4Network(host.store.load_network("default").subnet)[which]
    refused(
        host,
        IMAGE_VM.format("web1") + f"nics: [{{address: {address}}}]\n",
        InvalidError,
        "is not valid for a VM",
    )
    unchanged()


def test_a_kernel_that_qemus_user_cannot_read_is_refused(
    host: OwnHost, unchanged: Callable[[], None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    kernel = tmp_path_factory.mktemp("boot") / "vmlinuz"
    kernel.touch()
    kernel.chmod(0o600)
    refused(host, f"name: web1\nkernel: {kernel}\n", InvalidError, "cannot be read by the VM's user")
    unchanged()


def test_a_name_in_use_is_refused_and_its_vm_is_not_changed(host: OwnHost) -> None:
    make(host)
    before, calls = files(), len(host.fake.calls)
    refused(host, IMAGE_VM.format("web1"), ExistsError, "VM 'web1' already exists")
    assert files() == before
    assert not [call for call in host.fake.calls[calls:] if "Unit " in call or "disable" in call.lower()]


def test_no_image_is_built_for_a_vm_that_cannot_be_created(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr(host.images, "build", lambda name, **_: built.append(name))
    make(host)
    refused(host, "name: web1\nimage: debian\n", ExistsError, "VM 'web1' already exists")
    refused(host, "name: web2\nimage: debian\ndepends_on: [nope]\n", NotFoundError, "depends on 'nope'")
    make(host, "web2")
    create.create(host, "name: web3\ndisks: [{size: 1M}]\n")
    assert built == []
    refused(host, "name: web4\nimage: debian\n", NotFoundError, "image debian")
    assert built == ["debian"]


def test_an_image_that_another_command_is_building_is_used(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = locks._wait_for_lock

    def wait(host: OwnHost, descriptor: int, name: str, exclusive: bool) -> None:
        real(host, descriptor, name, exclusive)
        if exclusive and name == "image:debian":
            for suffix in (".qcow2", ".yaml"):
                shutil.copy(
                    f"{host.scope.images_dir}/tiny{suffix}", f"{host.scope.images_dir}/debian{suffix}"
                )

    monkeypatch.setattr(locks, "_wait_for_lock", wait)
    created = create.create(host, "name: web1\nimage: debian\n", start=False)
    assert created.vm.image == "debian"


@pytest.mark.parametrize("what", ["vm_dir", "environment", "drop_in"])
def test_files_of_unknown_origin_are_not_overwritten(host: OwnHost, what: str) -> None:
    path = Path(getattr(host.scope, what)("web1"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("nowhere")
    refused(host, IMAGE_VM.format("web1"), ExistsError, f"{path} exists, though VM 'web1' does not")
    assert path.is_symlink()


def test_a_second_vm_with_the_same_address_mac_or_uuid_is_refused(host: OwnHost) -> None:
    spec = make(host, start=False)
    before = files()
    nic = spec.nics[0]
    for more, words in (
        (f"nics: [{{address: {nic.address}}}]\n", f"{nic.address} belongs to the VM 'web1'"),
        (f"nics: [{{mac: '{nic.mac}'}}]\n", f"{nic.mac} belongs to the VM 'web1'"),
        (f"uuid: {spec.uuid}\n", f"the UUID {spec.uuid} belongs to the VM 'web1'"),
    ):
        refused(host, IMAGE_VM.format("web2") + more, ExistsError, words)
    assert files() == before


def test_a_broken_image_is_refused(host: OwnHost, unchanged: Callable[[], None]) -> None:
    with open(host.scope.image("tiny"), "r+b") as file:
        file.truncate(70_000)
    refused(host, IMAGE_VM.format("web1"), QsysdError, "image tiny is broken: .* is truncated")
    unchanged()


def test_a_disk_that_is_smaller_than_its_image_is_refused(
    host: OwnHost, unchanged: Callable[[], None]
) -> None:
    spawn.run(["qemu-img", "resize", "-q", host.scope.image("tiny"), "2M"])
    refused(host, IMAGE_VM.format("web1"), InvalidError, "too small for image tiny")
    unchanged()


def test_a_second_disk_without_a_size_is_refused(host: OwnHost, unchanged: Callable[[], None]) -> None:
    refused(
        host,
        "name: web1\nimage: tiny\ndisks: [{size: 1M}, {}]\n",
        InvalidError,
        "disk 'disk1' of web1 needs a size",
    )
    unchanged()


def test_a_host_that_is_not_set_up_is_an_error(scope: paths.Scope) -> None:
    host = OwnHost(scope)
    with pytest.raises(HostError, match="this host is not set up") as caught:
        make(host)
    assert caught.value.hint == "qsysd setup"


def test_nothing_is_created_without_the_bus(host: OwnHost, unchanged: Callable[[], None]) -> None:
    host.fake.gone = True
    with pytest.raises(HostError, match="the system bus cannot be reached"):
        make(host)
    unchanged()

"""Making VMs on a host below a directory: whole, or refused before anything is made, or undone."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import wire
from own_host import OwnHost
from samples import KEY, UUID
from stand_ins import StandIns

from qsysd import network, paths, seed
from qsysd.config import dump
from qsysd.errors import ExistsError, HostError, InvalidError, NotFoundError, QsysdError
from qsysd.host import intents, journal, keys, unit_states
from qsysd.images.formats import read_header
from qsysd.model.vm import VMSpec
from qsysd.operations import create, delete, power
from qsysd.operations import edit as edit_verb
from qsysd.qemu.nic import ports
from qsysd.runtime import roots, spawn, taps

IMAGE_VM = "name: {}\nimage: tiny\ndisks: [{{size: 1M}}]\n"


def make(host: OwnHost, name: str = "web1", more: str = "", **options: bool) -> VMSpec:
    create.create(host, IMAGE_VM.format(name) + more, "x.yaml", **options)  # type: ignore[arg-type]
    return host.store.load(name)


def files() -> set[str]:
    """Return all files and directories of the host but locks and caches."""
    found = set()
    for directory, directories, names in os.walk("."):
        found |= {os.path.join(directory, name) for name in [*directories, *names]}
    return {path for path in found if not path.startswith(("./run/qsysd", "./stand-ins", "./systemd.json"))}


@pytest.fixture
def unchanged(host: OwnHost) -> Callable[[], None]:
    """Check that nothing was made, and nothing is pending, since the test began."""
    before = files()

    def check() -> None:
        assert files() == before
        assert intents.pending(host.scope) == []
        assert not [call for call in host.fake.calls if call.startswith("StartUnit")]

    return check


# whole


def test_a_vm_with_all_that_belongs_to_it(host: OwnHost) -> None:
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


def test_nobody_else_can_look_into_a_vm(host: OwnHost) -> None:
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


def test_a_new_vm_counts_as_started_for_the_first_time_and_reloads_nothing(host: OwnHost) -> None:
    host.fake.set("qemu-vm@web1.service", "failed", "failed")
    make(host)
    calls = [call for call in host.fake.calls if "web1" in call]
    assert calls.index("ResetFailedUnit qemu-vm@web1.service") < calls.index("StartUnit qemu-vm@web1.service")
    assert "Reload" not in host.fake.calls


def test_a_vm_can_be_left_off_and_out_of_host_boot(host: OwnHost) -> None:
    make(host, start=False, enable=False)
    assert host.fake.state("qemu-vm@web1.service").active == "inactive"
    assert unit_states.enabled_names(host) == set()


def test_a_definition_that_was_kept_makes_the_same_vm_again(host: OwnHost) -> None:
    first = make(host, more=f"uuid: {UUID}\n")
    text = host.store.require("web1")
    delete.delete(host, ["web1"])
    create.create(host, text, "web1.yaml")
    assert host.store.load("web1") == first


@pytest.mark.parametrize("more", ["", "disks: [{}]\n"])
def test_a_definition_with_a_uuid_needs_no_disk_of_its_own(host: OwnHost, more: str) -> None:
    text = f"name: web1\nuuid: {UUID}\nimage: tiny\n{more}"
    create.create(host, text, "x.yaml")
    assert host.store.load("web1").user == "me"
    assert os.path.exists(host.scope.overlay("web1"))


def test_each_vm_has_an_address_and_a_mac_of_its_own(host: OwnHost) -> None:
    specs = [make(host, f"web{number}", "nics: [{}, {}]\n", start=False) for number in range(4)]
    nics = [nic for spec in specs for nic in spec.nics]
    assert len({nic.address for nic in nics}) == len({nic.mac for nic in nics}) == 8


def test_vms_that_are_made_at_once_have_addresses_of_their_own(host: OwnHost) -> None:
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


def test_two_commands_that_make_one_vm_make_one(host: OwnHost) -> None:
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


def test_an_address_that_a_broken_definition_had_is_not_given_away(host: OwnHost) -> None:
    first = make(host, "web1").nics[0].address
    Path(host.scope.definition("web1")).write_text("name: [\n", encoding="utf-8")
    assert make(host, "web2").nics[0].address != first


def test_an_address_that_somebody_still_holds_is_not_given_away(host: OwnHost) -> None:
    subnet = host.store.load_network("default").subnet
    first = network.allocate(subnet, [])
    leases = Path(host.scope.leases("default"))
    leases.parent.mkdir()
    leases.write_text(f"4000000000 52:54:00:00:00:99 {first} old *\n", encoding="utf-8")
    assert make(host).nics[0].address != first


def test_a_user_that_is_not_the_images_own_is_named_as_a_login_only(host: OwnHost) -> None:
    Path(host.scope.image_metadata("tiny")).write_text("default_user: debian\n", encoding="utf-8")
    make(host, more="user: bob\n", start=False)
    (warning,) = host.told
    assert warning.startswith("warning: the user bob is not created in the guest")
    assert "the SSH keys are for debian" in warning
    host.told.clear()
    make(host, "web2", more="user: debian\n", start=False)
    assert host.told == []


def test_more_memory_than_the_host_has_is_told_at_create(
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


def test_a_vm_of_more_memory_than_the_host_is_told_at_create(host: OwnHost) -> None:
    make(host, more="memory: 900T\n", start=False, enable=False)
    assert len(host.told) == 1
    assert host.told[0].startswith("warning: with web1, the running and enabled VMs have ")


def test_what_a_killed_command_left_is_removed_first(host: OwnHost) -> None:
    make(host, start=False)
    intents.begin(host, "web1", "create")
    make(host)
    assert host.told == ["web1: a create was killed; the VM was removed"]
    assert host.fake.state("qemu-vm@web1.service").active == "active"


# refused before anything is made


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
            "is not an address for a VM on network default",
        ),
        ("image: tiny\nmemory: 1", InvalidError, "too little memory"),
        ("image: tiny\nmachine: nonesuch", HostError, "no machine type 'nonesuch'"),
        ("kernel: /nonexistent/vmlinuz", InvalidError, "file /nonexistent/vmlinuz does not exist"),
        ("kernel: /etc", InvalidError, "file /etc does not exist"),
    ],
)
def test_what_cannot_be_is_refused(
    host: OwnHost, unchanged: Callable[[], None], more: str, error: type[QsysdError], words: str
) -> None:
    refused(host, f"name: web1\n{more}\n", error, words)
    unchanged()


@pytest.mark.parametrize("which", [0, 1, -1])
def test_addresses_that_are_the_networks_own_are_refused(
    host: OwnHost, unchanged: Callable[[], None], which: int
) -> None:
    import ipaddress

    address = ipaddress.IPv4Network(host.store.load_network("default").subnet)[which]
    refused(
        host,
        IMAGE_VM.format("web1") + f"nics: [{{address: {address}}}]\n",
        InvalidError,
        "not an address for a VM",
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


def test_a_taken_name_is_refused_and_the_vm_is_not_touched(host: OwnHost) -> None:
    make(host)
    before, calls = files(), len(host.fake.calls)
    refused(host, IMAGE_VM.format("web1"), ExistsError, "VM 'web1' already exists")
    assert files() == before
    assert not [call for call in host.fake.calls[calls:] if "Unit " in call or "disable" in call.lower()]


def test_no_image_is_built_for_a_vm_that_could_not_be_made(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr("qsysd.host.base_images.build", lambda host, name: built.append(name))
    make(host)
    refused(host, "name: web1\nimage: debian\n", ExistsError, "VM 'web1' already exists")
    refused(host, "name: web2\nimage: debian\ndepends_on: [nope]\n", NotFoundError, "depends on 'nope'")
    make(host, "web2")
    create.create(host, "name: web3\ndisks: [{size: 1M}]\n")
    assert built == []
    refused(host, "name: web4\nimage: debian\n", NotFoundError, "image debian")
    assert built == ["debian"]


@pytest.mark.parametrize("what", ["vm_dir", "environment", "drop_in"])
def test_files_of_unknown_origin_are_never_written_over(host: OwnHost, what: str) -> None:
    path = Path(getattr(host.scope, what)("web1"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("nowhere")
    refused(host, IMAGE_VM.format("web1"), ExistsError, f"{path} exists, though VM 'web1' does not")
    assert path.is_symlink()


def test_a_persons_own_drop_in_may_be_there_before_the_vm(host: OwnHost) -> None:
    own = Path(host.scope.drop_in_dir("web1"), "60-mine.conf")
    own.parent.mkdir()
    own.touch()
    make(host)
    assert delete.delete(host, ["web1"]).kept == [str(own)]
    assert os.listdir(own.parent) == [own.name]


def test_what_a_killed_write_left_is_deleted_too(host: OwnHost) -> None:
    before = files()
    make(host)
    for path in (host.scope.definition("web1"), host.scope.environment("web1"), host.scope.drop_in("web1")):
        Path(f"{path}.part").touch()
    delete.delete(host, ["web1"])
    assert files() == before


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


def test_a_host_that_is_not_set_up_says_so(scope: paths.Scope) -> None:
    host = OwnHost(scope)
    with pytest.raises(HostError, match="this host is not set up") as caught:
        make(host)
    assert caught.value.hint == "qsysd setup"


def test_a_host_without_its_bus_says_so_and_makes_nothing(
    host: OwnHost, unchanged: Callable[[], None]
) -> None:
    host.fake.gone = True
    with pytest.raises(HostError, match="the system bus cannot be reached"):
        make(host)
    unchanged()


# undone


def test_a_qemu_that_does_not_start_leaves_nothing(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_program_that_fails_leaves_nothing_and_is_quoted(
    host: OwnHost, unchanged: Callable[[], None], stand_ins: StandIns, program: str
) -> None:
    stand_ins.add(program, "echo 'warning: x' >&2; echo 'No space left on device' >&2; exit 1")
    with pytest.raises(QsysdError, match="No space left on device"):
        make(host)
    assert stand_ins.calls(program)
    unchanged()


@pytest.mark.needs_root
@pytest.mark.parametrize("room", [0, 60, 120, 240, 360])
def test_a_disk_that_fills_up_leaves_nothing(host: OwnHost, room: int) -> None:
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
def test_what_a_unit_left_goes_with_its_vm_and_nothing_of_others(host: OwnHost) -> None:
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
def test_a_bus_that_goes_in_the_middle_keeps_a_note_for_the_next_command(host: OwnHost, method: str) -> None:
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


def test_ctrl_c_leaves_nothing(
    host: OwnHost, unchanged: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(seed, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(host)
    unchanged()


# edit


def edit(host: OwnHost, name: str, old: str, new: str) -> edit_verb.Edited:
    before = host.store.require(name)
    assert old in before
    return edit_verb.edit(host, name, before.replace(old, new), before=before)


def test_an_edit_is_in_all_that_follows_from_it(host: OwnHost) -> None:
    make(host)
    edit(host, "web1", "stop_timeout: 90s", "stop_timeout: 7s\ncpu: host")
    assert edit_verb.render(host, ["web1"], check=True).differences == {"web1": []}
    environment = Path(host.scope.environment("web1")).read_text(encoding="utf-8")
    assert "QSYSD_STOP_TIMEOUT=7\n" in environment
    assert "TimeoutStopSec=37s" in Path(host.scope.drop_in("web1")).read_text(encoding="utf-8")


def test_an_edit_of_a_vm_that_runs_waits_for_a_restart(host: OwnHost) -> None:
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
def test_what_cannot_be_edited_is_refused_and_nothing_changes(
    host: OwnHost, old: str, new: str, words: str
) -> None:
    make(host)
    before = host.store.require("web1")
    with pytest.raises(QsysdError, match=words):
        edit(host, "web1", old, new)
    assert host.store.require("web1") == before


def test_an_edit_keeps_what_was_made_once(host: OwnHost) -> None:
    spec = make(host)
    text = "".join(
        line
        for line in host.store.require("web1").splitlines(keepends=True)
        if not line.startswith(("uuid", "machine"))
    )
    edit_verb.edit(host, "web1", text, before=host.store.require("web1"))
    assert host.store.load("web1") == spec


def test_an_alias_of_a_machine_type_is_pinned_by_an_edit_too(host: OwnHost) -> None:
    spec = make(host)
    edit(host, "web1", f"machine: {spec.machine}", "machine: q35")
    assert host.store.load("web1").machine == spec.machine


def test_two_people_who_edit_at_once_do_not_undo_each_other(host: OwnHost) -> None:
    make(host)
    before = host.store.require("web1")
    edit_verb.edit(host, "web1", before.replace("cpus: 1", "cpus: 2"), before=before)
    with pytest.raises(QsysdError, match="was changed by another command meanwhile"):
        edit_verb.edit(host, "web1", before.replace("cpus: 1", "cpus: 3"), before=before)
    assert host.store.load("web1").cpus == 2


def test_vms_that_would_wait_for_each_other_are_refused(host: OwnHost) -> None:
    make(host, "db1", start=False)
    make(host, "app1", "depends_on: [db1]\n", start=False)
    make(host, "web1", "depends_on: [app1]\n", start=False)
    with pytest.raises(InvalidError, match="db1 would wait for itself: db1 → web1 → app1 → db1"):
        edit(host, "db1", "seed: true\n", "seed: true\ndepends_on: [web1]\n")
    # a diamond is none
    edit(host, "web1", "- app1\n", "- db1\n- app1\n")


def test_a_nic_that_goes_takes_its_entry_along(host: OwnHost) -> None:
    spec = make(host, more="nics: [{}, {}]\n")
    assert len(network.hosts(host.scope, "default", "web1")) == 2
    before = host.store.require("web1")
    kept = dump.dump_vm(replace(spec, nics=spec.nics[:1]))
    edit_verb.edit(host, "web1", kept, before=before)
    assert network.hosts(host.scope, "default", "web1") == [(spec.nics[0].mac, spec.nics[0].address)]
    assert "KillUnit qsysd-dhcp@default.service main 1" in host.fake.calls


def test_a_definition_that_was_changed_by_hand_is_in_force_at_the_next_start(host: OwnHost) -> None:
    make(host, start=False)
    path = Path(host.scope.definition("web1"))
    path.write_text(path.read_text(encoding="utf-8").replace("cpus: 1", "cpus: 3"), encoding="utf-8")
    later = os.stat(host.scope.environment("web1")).st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))
    power.start(host, ["web1"])
    assert host.store.summary("web1").cpus == 3


# durability


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


def test_a_vm_is_on_the_disk_before_its_intent_is_removed(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = Synced(host, monkeypatch)
    create.create(host, "name: web1\nimage: tiny\ndisks: [{size: 1M}, {size: 1M}]\n", "x")
    scope = host.scope
    assert synced.found[-1] == (scope.intents_dir, 0)
    inside = {scope.overlay("web1"), scope.overlay("web1", "disk1"), f"{scope.seed('web1')}.part"}
    assert places(host) | inside | {scope.vm_dir("web1"), scope.drop_in_dir("web1")} <= synced.under_intent()


def test_a_deleted_vm_is_off_the_disk_before_its_intent_is_removed(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(host)
    synced = Synced(host, monkeypatch)
    delete.delete(host, ["web1"])
    assert synced.found[-1] == (host.scope.intents_dir, 0)
    assert places(host) <= synced.under_intent()


def test_a_failed_create_is_off_the_disk_before_its_intent_is_removed(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.fake.results["qemu-vm@web1.service"] = "failed"
    synced = Synced(host, monkeypatch)
    with pytest.raises(QsysdError):
        make(host)
    assert synced.found[-1] == (host.scope.intents_dir, 0)
    assert places(host) <= synced.under_intent()

"""Definitions on disk: written atomically, also on a full disk, and read whatever the directory contains."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import wire
from samples import any_vms, vm

import qsysd
from qsysd import render, seed
from qsysd.config import dump, load
from qsysd.errors import RUN_AS_ROOT, InvalidError, NotFoundError, QsysdError
from qsysd.files import SyncedTogether, read_text, remove, write_atomic
from qsysd.model.vm import VMSpec
from qsysd.names import in_order
from qsysd.paths import Scope
from qsysd.qemu.nic import ports
from qsysd.store import Started, Store, Summary
from qsysd.store.claims import Claims, of_others

PACKAGE = os.path.dirname(os.path.dirname(qsysd.__file__))


@pytest.fixture
def definitions(scope: Scope) -> Store:
    """Return the definitions of a host that has none."""
    os.makedirs(scope.definitions_dir)
    os.makedirs(scope.networks_dir)
    os.makedirs(scope.unit_dir)
    return Store(scope)


def write(definitions: Store, spec: VMSpec) -> None:
    definitions.write_definition(spec.name, dump.dump_vm(spec))


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


# writing


def test_a_file_is_written_with_its_mode_regardless_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomic(f"{tmp_path}/open", "é\n", 0o644)
        os.umask(0)
        write_atomic(f"{tmp_path}/closed", "x", 0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o600
    assert (tmp_path / "open").read_bytes() == "é\n".encode()
    assert names_in(tmp_path) == ["closed", "open"]


def test_a_file_is_never_readable_for_more_users_than_in_the_end(tmp_path: Path) -> None:
    # the mode of what is replaced does not matter
    (tmp_path / "x").touch(0o666)
    (tmp_path / "x.part").touch(0o666)
    write_atomic(f"{tmp_path}/x", "secret", 0o600)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    write_atomic(f"{tmp_path}/x", "old", 0o644)
    with (tmp_path / "x").open(encoding="utf-8") as reader:
        write_atomic(f"{tmp_path}/x", "new", 0o644)
        assert reader.read() == "old"
    assert read_text(f"{tmp_path}/x") == "new"


def test_contents_are_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        order.append("directory" if stat.S_ISDIR(status.st_mode) else "file")
        assert stat.S_ISDIR(status.st_mode) or status.st_size == 4
        sync(descriptor)

    def noted_rename(source: str, target: str) -> None:
        order.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", noted_rename)
    write_atomic(f"{tmp_path}/x", "text", 0o644)
    assert order == ["file", "rename", "directory"]


def test_directories_that_change_together_are_synced_once_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def noted_sync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", noted_sync)
    (tmp_path / "gone").mkdir()
    with SyncedTogether():
        with SyncedTogether():
            write_atomic(f"{tmp_path}/x", "text", 0o644)
            write_atomic(f"{tmp_path}/gone/y", "text", 0o644)
        remove(f"{tmp_path}/x")
        remove(f"{tmp_path}/gone/y")
        (tmp_path / "gone").rmdir()
        assert str(tmp_path) not in synced
    assert synced.count(str(tmp_path)) == 1


def test_a_write_beyond_the_size_limit_keeps_the_old_file(tmp_path: Path) -> None:
    # the limit applies to a process: a separate one is started
    program = """
import resource, signal
from qsysd.errors import QsysdError
from qsysd.files import write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_atomic('x', 'new' * 5000, 0o644)
except QsysdError as error:
    print(error.message)
"""
    (tmp_path / "x").write_text("old", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": PACKAGE},
    )
    assert done.stdout == "x cannot be written: File too large\n", done.stderr
    assert names_in(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text(encoding="utf-8") == "old"


@pytest.mark.needs_root
def test_a_full_disk_keeps_the_old_file_and_gives_a_hint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with wire.namespace():
        wire.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk))
        (disk / "x").write_text("old", encoding="utf-8")
        with pytest.raises(QsysdError) as caught:
            write_atomic(f"{disk}/x", "n" * 200_000, 0o644)
        assert "No space left on device" in caught.value.message
        assert caught.value.hint == "the disk is full: free some space and try again"
        assert names_in(disk) == ["x"]
        assert (disk / "x").read_text(encoding="utf-8") == "old"
        wire.run("umount", str(disk))


def test_a_lack_of_permission_gives_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(QsysdError, match="x cannot be written: Permission denied") as caught:
        write_atomic(f"{tmp_path}/x", "text", 0o644)
    assert caught.value.hint == RUN_AS_ROOT


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(QsysdError, match="no/x cannot be written: No such file or directory"):
        write_atomic(f"{tmp_path}/no/x", "text", 0o644)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(f"{tmp_path}/x", "text", 0o644)
    assert names_in(tmp_path) == []


# reading


def test_reading(tmp_path: Path) -> None:
    assert read_text(f"{tmp_path}/x") is None
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(QsysdError, match="x cannot be read: it is not UTF-8 text"):
        read_text(f"{tmp_path}/x")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(QsysdError, match="cannot be read: not a regular file"):
            read_text(str(path))


def test_names(definitions: Store, scope: Scope) -> None:
    assert definitions.names() == []
    for name in ("web2", "web1", "a"):
        Path(scope.definition(name)).touch()
        Path(scope.environment(name)).touch()
    assert definitions.names() == ["a", "web1", "web2"]


def test_backup_files_of_editors_are_not_vms(definitions: Store, scope: Scope) -> None:
    for name in (".#web1", "web1.bak", "Web1", "web1~", "", "web 1", "-x", ".web1"):
        Path(scope.definitions_dir, f"{name}.yaml").touch()
    Path(scope.definitions_dir, "web1.yaml.part").touch()
    Path(scope.definitions_dir, ".web1.yaml.swp").touch()
    assert definitions.names() == []


def test_a_host_before_setup_has_no_vms(scope: Scope) -> None:
    assert Store(scope).names() == []
    assert Store(scope).network_names() == []


def test_an_unknown_vm_gives_the_most_similar_name(definitions: Store, scope: Scope) -> None:
    Path(scope.definition("web1")).touch()
    with pytest.raises(NotFoundError, match="VM 'web11' does not exist") as caught:
        definitions.require("web11")
    assert caught.value.hint == "did you mean web1?"
    with pytest.raises(NotFoundError) as caught:
        definitions.require("database")
    assert caught.value.hint == "qsysd list shows the VMs of this host"


@pytest.mark.parametrize(
    "name", ["../networks/default", "../../../etc/passwd", "x/../web1", "./web1", "web1/", "", ".", "web1\0"]
)
def test_a_path_is_not_accepted_as_the_name_of_a_vm(definitions: Store, scope: Scope, name: str) -> None:
    Path(scope.network_definition("default")).touch()
    Path(scope.definition("web1")).touch()
    assert not definitions.exists(name)
    with pytest.raises(NotFoundError):
        definitions.require(name)
    with pytest.raises(NotFoundError):
        definitions.load(name)
    with pytest.raises(NotFoundError):
        definitions.load_network(name)


def test_an_invalid_definition_is_reported_with_its_line(definitions: Store, scope: Scope) -> None:
    write(definitions, vm())
    Path(scope.definition("web2")).write_text("name: web2\nmemory: x\n", encoding="utf-8")
    with pytest.raises(InvalidError, match=r"web2\.yaml:2: memory: 'x' is not a size"):
        definitions.load("web2")


def test_a_definition_that_is_written_is_read_unchanged(definitions: Store, scope: Scope) -> None:
    write(definitions, vm())
    assert definitions.load("web1") == vm()
    assert stat.S_IMODE(os.stat(scope.definition("web1")).st_mode) == 0o600


def test_defaults_come_from_the_hosts_file(definitions: Store, scope: Scope) -> None:
    assert definitions.defaults().memory_mib == 1024
    Path(scope.defaults_file).write_text("memory: 2G\n", encoding="utf-8")
    assert definitions.defaults().memory_mib == 2048
    Path(scope.defaults_file).write_text("memory: [\n", encoding="utf-8")
    with pytest.raises(InvalidError, match=r"qsysd\.yaml:\d: not valid YAML"):
        definitions.defaults()


# what is rendered


def test_only_what_differs_is_written(definitions: Store, scope: Scope) -> None:
    rendered = render.vm(vm(seed=False), scope)
    assert definitions.write_rendered("web1", rendered) == [scope.drop_in("web1"), scope.environment("web1")]
    assert definitions.write_rendered("web1", rendered) == []
    assert definitions.differences("web1", rendered) == []
    other = render.vm(vm(memory_mib=1024, seed=False), scope)
    assert definitions.differences("web1", other) == [scope.environment("web1")]
    assert definitions.write_rendered("web1", other) == [scope.environment("web1")]
    # keys and addresses are not for other users
    assert stat.S_IMODE(os.stat(scope.environment("web1")).st_mode) == 0o600


def test_a_definition_is_stale_from_its_change_to_its_rendering(definitions: Store, scope: Scope) -> None:
    assert not definitions.is_stale("web1")
    write(definitions, vm(seed=False))
    assert definitions.is_stale("web1")
    definitions.write_rendered("web1", render.vm(vm(seed=False), scope))
    assert not definitions.is_stale("web1")
    # By its contents, not by its time: `rsync -a` restores an older file with its older time.
    path = Path(scope.definition("web1"))
    path.touch()
    assert not definitions.is_stale("web1")
    text = f"# a comment\r\n{path.read_text(encoding='utf-8')}"
    path.write_text(text, encoding="utf-8", newline="")
    os.utime(path, (100, 100))
    assert definitions.is_stale("web1")
    definitions.write_rendered("web1", render.vm(vm(seed=False), scope, definitions.require("web1")))
    assert not definitions.is_stale("web1")


def test_a_drop_in_or_a_seed_of_another_rendering_makes_a_vm_stale(definitions: Store, scope: Scope) -> None:
    os.makedirs(scope.vm_dir("web1"))
    for changes in ({"stop_timeout": 7}, {"ssh_keys": ()}):
        old, new = vm(), vm(**changes)
        write(definitions, new)
        seed.write(old, scope)
        definitions.write_rendered("web1", render.vm(old, scope, definitions.require("web1")))
        assert not definitions.is_stale("web1")
        # As a killed edit of an older version left it: the environment file first.
        Path(scope.environment("web1")).write_text(render.vm(new, scope).environment, encoding="utf-8")
        assert definitions.is_stale("web1")
        assert definitions.differences("web1", render.vm(new, scope)) in (
            [scope.drop_in("web1")], [scope.seed("web1")],
        )  # fmt: skip
    os.unlink(scope.seed("web1"))
    assert definitions.is_stale("web1")


# what others claim


def test_claims_equal_the_definitions(definitions: Store, scope: Scope) -> None:
    specs = {spec.name: spec for spec in any_vms(20, seed=12)}
    for number, spec in enumerate(specs.values()):
        write(definitions, spec)
        if number % 2:  # the others were written by hand, and nothing is rendered yet
            definitions.write_rendered(spec.name, render.vm(spec, scope))
    found = of_others(definitions, "nobody")
    assert [each.name for each in found] == in_order(specs)
    for each in found:
        spec = specs[each.name]
        assert (each.uuid, each.ports, each.depends_on) == (spec.uuid, tuple(ports(spec)), spec.depends_on)
    assert "web1" not in [each.name for each in of_others(definitions, "web1")]


def test_a_definition_changed_by_hand_claims_its_new_values(definitions: Store, scope: Scope) -> None:
    write(definitions, vm())
    definitions.write_rendered("web1", render.vm(vm(), scope))
    write(definitions, vm(depends_on=("web2",)))
    assert of_others(definitions)[0].depends_on == ("web2",)


def test_an_invalid_definition_claims_its_last_valid_values(definitions: Store, scope: Scope) -> None:
    write(definitions, vm())
    definitions.write_rendered("web1", render.vm(vm(), scope))
    Path(scope.definition("web1")).write_text("name: [\n", encoding="utf-8")
    assert of_others(definitions)[0].ports == tuple(ports(vm()))
    Path(scope.environment("web1")).write_text("QSYSD_NICS=x\n", encoding="utf-8")
    Path(scope.definition("web1")).touch()
    assert of_others(definitions) == [Claims("web1", "", (), (), 0)]


# summaries


def test_a_summary_needs_no_yaml(definitions: Store, scope: Scope) -> None:
    definitions.write_rendered("web1", render.vm(vm(), scope))
    assert definitions.summary("web1") == Summary(
        "web1",
        512,
        2,
        "debian",
        ("10.83.0.10",),
        render.vm(vm(), scope).digest,
        ("disk0",),
        "0123456789abcdef" * 4,
    )


def test_a_summary_equals_the_definition(definitions: Store, scope: Scope) -> None:
    for spec in any_vms(20, seed=11):
        definitions.write_rendered(spec.name, render.vm(spec, scope))
        found = definitions.summary(spec.name)
        assert (found.memory_mib, found.cpus, found.image) == (spec.memory_mib, spec.cpus, spec.image)
        assert found.addresses == tuple(nic.address for nic in spec.nics if nic.address)
        assert found.disks == tuple(disk.name for disk in spec.effective_disks)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "QSYSD_MEMORY_MIB=\n",
        "QSYSD_MEMORY_MIB=lots\nQSYSD_CPUS=\n",
        "QSYSD_NICS=;;,\n",
        "QSYSD_NICS=x\n",
        "QSYSD_DISKS=1000000000000\n",
        "QSYSD_MEMORY_MIB=" + "9" * 5000,
        "QSYSD_DISKS=../x::a-b\n",
        "=\n\n=x\n",
        "QSYSD_CPUS=1e3",
    ],
)
def test_a_summary_of_an_invalid_file_has_the_name(definitions: Store, scope: Scope, text: str) -> None:
    Path(scope.environment("web1")).write_text(text, encoding="utf-8")
    found = definitions.summary("web1")
    assert (found.name, found.memory_mib, found.cpus, found.disks) == ("web1", None, None, ())


def test_a_summary_of_a_binary_file_has_the_name(definitions: Store, scope: Scope) -> None:
    Path(scope.environment("web1")).write_bytes(b"\xff")
    assert definitions.summary("web1").name == "web1"
    assert definitions.summary("web2").memory_mib is None


def test_definitions_are_written_as_they_are_read(definitions: Store) -> None:
    write(definitions, vm(stop_timeout=7))
    text = definitions.require("web1")
    assert load.parse_vm(text, "x") == vm(stop_timeout=7)
    assert remove("nothing") is False


def test_names_are_in_natural_order(definitions: Store) -> None:
    names = ["a", "web2", "web2-1", "web2b", "web10", "web10-2", "web10-11"]
    for name in reversed(names):
        Path(definitions.scope.definition(name)).touch()
        Path(definitions.scope.network_definition(name)).touch()
    assert definitions.names() == names
    assert definitions.network_names() == names


# what a VM was started with


@pytest.mark.parametrize(
    ("text", "started"),
    [
        ("0123456789abcdef\n", Started("0123456789abcdef", None, None, "")),
        (
            "0123456789abcdef\nQSYSD_MEMORY_MIB=512\nQSYSD_CPUS=2\nQSYSD_ACCELERATOR=kvm\n",
            Started("0123456789abcdef", 512, 2, "kvm"),
        ),
        ("0123456789abcdef\nQSYSD_MEMORY_MIB=\nQSYSD_CPUS=x\n", Started("0123456789abcdef", None, None, "")),
        ("", Started("", None, None, "")),
    ],
)
def test_the_record_of_a_start_is_read_in_the_old_and_the_new_form(
    definitions: Store, text: str, started: Started
) -> None:
    os.makedirs(definitions.scope.started_dir)
    assert definitions.started("web1") is None
    Path(definitions.scope.started_record("web1")).write_text(text, encoding="ascii")
    assert definitions.started("web1") == started

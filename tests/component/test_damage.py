"""Each file of a VM, damaged in each way: other VMs do not notice, and `delete` removes the damaged one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from own_host import OwnHost, removed_by_delete

from qsysd.errors import QsysdError
from qsysd.host import recovery
from qsysd.operations import create, delete, doctor, edit, image, power, query, setup
from qsysd.operations.list import list_vms
from qsysd.paths import Scope

VM = "name: {}\nimage: tiny\nmemory: 64M\ndisks: [{{size: 1M}}, {{size: 1M}}]\nnics: [{{}}]\n"
HEALTHY = "healthy"

# What a VM has: VM → the path of what is damaged of it.
PLACES: dict[str, Callable[[Scope, str], str]] = {
    "bad-definition": Scope.definition,
    "bad-environment": Scope.environment,
    "bad-drop-in": Scope.drop_in,
    "bad-drop-ins": Scope.drop_in_dir,
    "bad-entry": lambda scope, vm: scope.dhcp_host("default", vm),
    "bad-note": Scope.started_record,
    "bad-known-hosts": Scope.known_hosts,
    "bad-disk": Scope.overlay,
    "bad-seed": Scope.seed,
    "bad-directory": Scope.vm_dir,
    "bad-scratch": Scope.seed_scratch,
    "bad-console": Scope.console_log,
    "bad-boot": lambda scope, vm: os.path.join(scope.wants_dir, f"qemu-vm@{vm}.service"),
    "bad-half-definition": lambda scope, vm: f"{scope.definition(vm)}.part",
    "bad-half-environment": lambda scope, vm: f"{scope.environment(vm)}.part",
}
# Of these, `delete` shows that a directory is in the place of a file.
SHOWN = ("bad-definition", "bad-environment", "bad-drop-in", "bad-entry", "bad-note", "bad-known-hosts")


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _full_directory(path: Path) -> None:
    (path / "deep/er").mkdir(parents=True)
    (path / "deep/file").touch()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": _write(b""),
    "garbage": _write(b"\0\x01{[:\n\t- &a *a\n=\n[Service\nQSYSD_NICS=,;,\nQEMU_ARGS='\n"),
    "not UTF-8": _write(b"\xff\xfe\xff\n"),
    "directory": _full_directory,
    "dangling link": lambda path: path.symlink_to("/nonexistent/nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "FIFO": lambda path: os.mkfifo(path),
}


def put(path: Path, damage: str) -> None:
    """Put something damaged in the place of a file or directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    DAMAGES[damage](path)


def left_of(name: str) -> set[str]:
    """Return the paths below the current directory that are named after a VM."""
    return {
        os.path.join(directory, entry)
        for directory, directories, files in os.walk(".")
        for entry in [*directories, *files]
        if f"{entry}.".startswith((f"{name}.", f"qemu-vm@{name}."))
    }


@pytest.fixture(scope="module")
def made(set_up: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a host that has a VM for each place, and one that stays healthy."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(set_up, root, symlinks=True, dirs_exist_ok=True)
    before = os.getcwd()
    os.chdir(root)
    try:
        host = OwnHost(Scope(""))
        for name in (*PLACES, HEALTHY):
            create.create(host, VM.format(name), "x", start=False)
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def vms(made: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Return that host below the current directory."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    shutil.copytree(made, ".", symlinks=True, dirs_exist_ok=True)
    return OwnHost(scope)


def statuses(host: OwnHost) -> dict[str, query.VMStatus]:
    """Return the status of each VM that is listed."""
    names = [vm.name for vm in list_vms(host)]
    return {status.name: status for status in query.status(host, names)}


@pytest.mark.parametrize("damage", DAMAGES)
def test_vms_that_are_damaged_are_deleted_and_no_other_notices(vms: OwnHost, damage: str) -> None:
    places = {name: Path(path(vms.scope, name)) for name, path in PLACES.items()}
    for path in places.values():
        put(path, damage)
    names = [name for name in (*PLACES, HEALTHY) if name != "bad-definition" or damage != "missing"]

    assert set(statuses(vms)) == {*PLACES, HEALTHY}
    for verb in (power.start, power.stop, power.restart):
        # A damaged VM may fail, with an error of its own.
        assert {each.name: each.error for each in verb(vms, names)}[HEALTHY] is None
        for path in places.values():
            put(path, damage)
    status = statuses(vms)[HEALTHY]
    assert (status.active, status.memory_mib, status.problem, status.pending) == ("active", 64, None, [])
    assert edit.render(vms, [HEALTHY], check=True).differences == {HEALTHY: []}
    assert doctor.examine(vms)
    create.create(vms, VM.format("another"), "x", start=False)
    assert recovery.recover(vms) == []
    image.list_images(vms)
    setup.setup(vms)
    for path in places.values():
        put(path, damage)

    # The one without a definition is deleted as well.
    names = [*PLACES, HEALTHY]
    shown = {name: "\n".join(removed_by_delete(vms, name)) for name in names}
    if damage == "directory":
        for name in SHOWN:
            assert f"{places[name]} (a directory, with everything in it)" in shown[name]
    done = delete.delete(vms, [name for name in names if name != HEALTHY])
    assert done.failed == {}
    assert vms.store.names() == ["another", HEALTHY]
    for name in set(names) - {HEALTHY}:
        # What is in the place of the directory for a person's drop-ins is theirs.
        assert left_of(name) <= {f"./{places['bad-drop-ins']}"}
    assert delete.delete(vms, [HEALTHY, "another"]).failed == {}


def test_one_vm_that_cannot_be_deleted_keeps_no_other(vms: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    from qsysd.host import removal

    real = removal._remove_files

    def fail(host: OwnHost, name: str) -> None:
        if name == "bad-disk":
            raise RecursionError("maximum recursion depth exceeded")
        real(host, name)

    with monkeypatch.context() as patch:
        patch.setattr(removal, "_remove_files", fail)
        done = delete.delete(vms, ["bad-disk", "bad-seed"])
        assert "bad-disk" in vms.store.names() and "bad-seed" not in vms.store.names()
        assert list(done.failed) == ["bad-disk"]
        assert "bad-disk was not deleted: RecursionError: maximum" in done.failed["bad-disk"].message
        # the next command tries again, and does its own work
        create.create(vms, VM.format("web4"), "x", start=False)
        assert "bad-disk: the delete that was killed cannot be repaired yet" in vms.told[-1]
    recovery.recover(vms)
    assert "bad-disk" not in vms.store.names() and "web4" in vms.store.names()


def test_a_vm_is_deleted_without_the_units_template(vms: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def disable(units: object) -> None:
        raise QsysdError("systemd: DisableUnitFiles: Unit file qemu-vm@bad-disk.service does not exist.")

    os.unlink(os.path.join(vms.scope.unit_dir, "qemu-vm@.service"))
    monkeypatch.setattr(vms.fake, "disable", disable)
    assert delete.delete(vms, ["bad-disk"]).failed == {}
    assert left_of("bad-disk") == set()

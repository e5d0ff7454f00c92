"""The steps before-start and after-stop."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import wire
from unit_steps import (
    GID,
    UID,
    VM,
    owners,
)

from qsysd.errors import HostError, InvalidError
from qsysd.paths import Scope
from qsysd.runtime import cleanup, prepare, roots
from qsysd.store import Started, Store


@pytest.fixture
def unit(directory: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare what systemd has prepared when it runs the first step, of a VM without a NIC."""
    os.makedirs(scope.runtime(VM))
    os.chown(scope.runtime(VM), UID, GID)
    os.makedirs(scope.definitions_dir)
    Path(scope.definition(VM)).write_text("name: web1\n", encoding="utf-8")
    for name, value in (
        ("QSYSD_NICS", ""), ("QSYSD_ACCEL", "-accel tcg"), ("QSYSD_DIGEST", "0123456789abcdef"),
        ("QSYSD_READ_FILES", ""), ("QSYSD_MEMORY_MIB", "512"), ("QSYSD_CPUS", "2"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("unit")
def test_before_start_gives_the_directory_to_the_uid_that_systemd_chose(
    directory: Path, scope: Scope
) -> None:
    prepare.before_start(scope, VM)
    assert owners(directory) == {(UID, GID)}


@pytest.mark.usefixtures("unit", "directory")
@pytest.mark.parametrize(
    ("words", "accelerator"), [("-accel tcg", "tcg"), ("-accel kvm", "kvm"), (None, "kvm")]
)
def test_before_start_records_what_the_vm_starts_with(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, words: str | None, accelerator: str
) -> None:
    """Without the variable, at the first start on a host, by the file that systemd reads next."""
    if words:
        monkeypatch.setenv("QSYSD_ACCEL", words)
    else:
        monkeypatch.delenv("QSYSD_ACCEL")
        monkeypatch.setattr("qsysd.runtime.kvm.probe", lambda: None)
    prepare.before_start(scope, VM)
    assert Store(scope).started(VM) == Started("0123456789abcdef", 512, 2, accelerator)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("loaded", ["", "fedcba9876543210"])
def test_before_start_refuses_a_drop_in_that_systemd_has_not_loaded(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, loaded: str
) -> None:
    monkeypatch.setenv("QSYSD_EXPECTED_DROP_IN", "0123456789abcdef")
    monkeypatch.setenv("QSYSD_DROP_IN", loaded)
    with pytest.raises(HostError) as caught:
        prepare.before_start(scope, VM)
    assert scope.drop_in(VM) in caught.value.message
    assert caught.value.hint == "qsysd render web1"
    assert not os.path.exists(scope.root_dir(VM))
    monkeypatch.setenv("QSYSD_DROP_IN", "0123456789abcdef")
    prepare.before_start(scope, VM)


@pytest.mark.usefixtures("unit")
def test_before_start_refuses_another_image_than_the_disk_was_created_on(
    scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSYSD_IMAGE", "debian")
    monkeypatch.setenv("QSYSD_IMAGE_DIGEST", "a" * 64)
    os.makedirs(scope.images_dir)
    with pytest.raises(HostError, match="No such file"):
        prepare.before_start(scope, VM)
    Path(scope.image("debian")).write_bytes(b"x" * 100)
    note = Path(scope.image_metadata("debian"))
    for text, refused in (
        (None, False),
        (f"sha256: {'a' * 64}\nfile_size: 100\n", False),
        (f"sha256: {'b' * 64}\nfile_size: 100\n", True),
        (f"sha256: '{'a' * 64}'\nfile_size: 99\n", True),
        ("\0", False),
    ):
        if text is not None:
            note.write_text(text, encoding="utf-8")
        if refused:
            with pytest.raises(HostError, match="image debian is not the one that the VM's disk was created"):
                prepare.before_start(scope, VM)
        else:
            prepare.before_start(scope, VM)


@pytest.mark.usefixtures("unit")
def test_before_start_reports_a_definition_that_was_changed_after_it_was_rendered(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, journal: Callable[[], list[str]]
) -> None:
    definition = Path(scope.definition(VM))
    monkeypatch.setenv("QSYSD_DEFINITION", hashlib.sha256(b"name: web1\n").hexdigest()[:16])
    prepare.before_start(scope, VM)
    assert journal() == []
    definition.write_text("name: web1\ncpus: 2\n", encoding="utf-8")
    os.utime(definition, (100, 100))
    prepare.before_start(scope, VM)
    (line,) = journal()
    assert f"{definition} was changed after it was rendered" in line
    definition.unlink()
    prepare.before_start(scope, VM)
    (line,) = journal()
    assert f"{definition} does not exist" in line


@pytest.mark.needs_root
@pytest.mark.usefixtures("unit")
def test_after_stop_gives_the_directory_back_to_root_and_can_be_repeated(
    directory: Path, scope: Scope
) -> None:
    prepare.before_start(scope, VM)
    os.unlink(scope.started_record(VM))
    os.makedirs(f"{scope.started_record(VM)}/in-the-way")
    prepare.before_start(scope, VM)
    assert os.path.isfile(scope.started_record(VM))
    for what in ("file", "directory", "nothing"):
        if what == "directory":
            os.makedirs(f"{scope.started_record(VM)}/in-the-way")
        cleanup.after_stop(scope, VM)
        assert owners(directory) == {(0, 0)}
        assert not os.path.lexists(scope.started_record(VM))
        assert not os.path.lexists(scope.root_dir(VM))


@pytest.mark.usefixtures("unit")
def test_after_stop_does_nothing_at_host_shutdown(directory: Path, scope: Scope) -> None:
    prepare.before_start(scope, VM)
    Path(scope.shutdown_mark).touch()
    cleanup.after_stop(scope, VM)
    assert os.path.exists(scope.root_dir(VM))
    # a soft reboot keeps all of it, and the next start works with it
    prepare.before_start(scope, VM)
    assert not os.path.exists(scope.shutdown_mark)
    assert owners(directory) == {(UID, GID)}


def test_a_root_directory_is_accessible_to_its_user_and_links_to_programs(scope: Scope) -> None:
    before = os.umask(0o077)
    try:
        for _ in range(2):
            roots.make(scope.root_dir(VM))
    finally:
        os.umask(before)
    root = Path(scope.root_dir(VM))
    assert os.readlink(root / "lib") == "usr/lib"
    for path in [root, *root.rglob("*")]:
        assert path.is_symlink() or (path.is_dir() and path.stat().st_mode & 0o777 == 0o755), path


def test_a_root_directory_is_removed_with_the_mount_points_of_systemd(scope: Scope) -> None:
    root = Path(scope.root_dir(VM))
    roots.make(str(root))
    # what systemd creates as mount points
    (root / "var/lib/tiny").mkdir(parents=True)
    (root / "var/lib/tiny/vmlinuz").touch()
    (root / "run/host").mkdir()
    (root / "run/host/os-release").symlink_to(".os-release-stage/os-release")
    assert roots.remove(str(root))
    assert not root.exists()
    assert roots.remove(str(root))


def test_only_what_qsysd_created_is_removed_from_a_root_directory(scope: Scope, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    root = Path(scope.root_dir(VM))
    roots.make(str(root))
    (root / "srv").symlink_to(other)
    (root / "usr/notes").write_text("a person's")
    assert not roots.remove(str(root))
    assert sorted(path.name for path in root.rglob("*")) == ["notes", "srv", "usr"]
    assert (other / "file").exists()
    # the next start and stop work with what is left
    roots.make(str(root))
    assert not roots.remove(str(root))


@pytest.mark.needs_root
@pytest.mark.usefixtures("unit")
def test_after_stop_changes_nothing_that_is_mounted_below_the_vms_directories(
    directory: Path, scope: Scope, journal: Callable[[], list[str]]
) -> None:
    prepare.before_start(scope, VM)
    with wire.namespace():
        for place in (Path(scope.root_dir(VM), "mnt"), directory / "data"):
            place.mkdir()
            wire.run("mount", "-t", "tmpfs", "tmpfs", str(place))
            (place / "empty").touch()
        cleanup.after_stop(scope, VM)
        for place in (Path(scope.root_dir(VM), "mnt"), directory / "data"):
            assert os.listdir(place) == ["empty"]
    said = journal()
    assert scope.root_dir(VM) in said[0] and f"{directory}/data" in said[1]


def test_after_stop_is_quiet_where_nothing_exists(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QSYSD_NICS", raising=False)
    cleanup.after_stop(scope, VM)


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize(
    ("variable", "value"),
    [("QSYSD_DIGEST", ""), ("QSYSD_DIGEST", "0123456789abcde"), ("QSYSD_DIGEST", "0123456789abcdef0"),
     ("QSYSD_DIGEST", "../../etc/x"), ("QSYSD_DIGEST", "0123456789ABCDEF"),
     ("QSYSD_NICS", "eth0,52:54:00:00:00:01,qb-default,default,-"),
     ("QSYSD_NICS", "qv-a-0,x,qb-default,default,-"),
     ("QSYSD_NICS", "qv-a-0,52:54:00:00:00:01,qb-default,default,10.0.0.1;"),
     ("QSYSD_NICS", "qv-a-0,52:54:00:00:00:01,../x,default,-"),
     ("QSYSD_NICS", "qv-a-0,52:54:00:00:00:01,-x,default,-")],
)  # fmt: skip
def test_before_start_refuses_variables_that_are_not_valid(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidError):
        prepare.before_start(scope, VM)
    assert not os.path.exists(scope.started_record(VM))


@pytest.mark.usefixtures("unit")
def test_a_kernel_that_qemus_user_cannot_read_is_named(
    scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.touch(0o644)
    kernel.chmod(0o640)
    monkeypatch.setenv("QSYSD_READ_FILES", str(kernel))
    with pytest.raises(HostError, match="cannot be read by the VM's user") as caught:
        prepare.before_start(scope, VM)
    assert caught.value.hint == f"chmod o+r {kernel}"
    kernel.chmod(0o644)
    prepare.before_start(scope, VM)
    monkeypatch.setenv("QSYSD_READ_FILES", f"{kernel}:{tmp_path}/gone")
    with pytest.raises(HostError, match="gone: No such file"):
        prepare.before_start(scope, VM)
    monkeypatch.setenv("QSYSD_READ_FILES", f"{kernel}:{tmp_path}")
    with pytest.raises(HostError, match=f"{tmp_path} is not a file"):
        prepare.before_start(scope, VM)


@pytest.mark.usefixtures("unit")
def test_a_missing_directory_is_named(scope: Scope, directory: Path) -> None:
    directory.rename("elsewhere")
    with pytest.raises(HostError, match=scope.vm_dir(VM)):
        prepare.before_start(scope, VM)

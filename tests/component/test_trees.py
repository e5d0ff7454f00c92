"""Removal of directories that QEMU's user could write to, or below which something is mounted."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import wire
from own_host import OwnHost, removed_by_delete

from qsysd.errors import QsysdError, StateError
from qsysd.host import intents
from qsysd.operations import create, delete, power
from qsysd.runtime import trees

DEFINITION = "name: {}\ndisks: [{{size: 1M}}]\nnics: []\nseed: false\n"


@pytest.fixture
def clean(tmp_path: Path) -> Iterator[None]:
    """Remove what a failed test leaves: pytest could not, at that depth."""
    yield
    wire.run("rm", "-rf", str(tmp_path))


def nest(directory: Path, depth: int) -> None:
    """Create nested directories with a file in each; their path may be longer than any program can name."""
    current = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("nested", dir_fd=current)
        below = os.open("nested", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    os.close(current)


@pytest.fixture
def few_files() -> Iterator[None]:
    """Allow only a few open files more than there are."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def make(host: OwnHost, name: str) -> Path:
    """Create a VM that is off; return its directory."""
    create.create(host, DEFINITION.format(name), "x", start=False)
    return Path(host.scope.vm_dir(name))


@pytest.mark.usefixtures("clean", "few_files")
def test_directories_deeper_than_the_recursion_limit_and_path_max_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    nest(top, 3000)
    (top / "sibling").mkdir()
    nest(top / "sibling", 2)
    trees.remove(str(top))
    assert os.listdir(tmp_path) == []


def test_no_link_is_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    top = tmp_path / "top"
    (top / "below").mkdir(parents=True)
    (top / "link").symlink_to(other)
    (top / "below" / "link").symlink_to(other)
    os.mkfifo(top / "fifo")
    trees.remove(str(top))
    (tmp_path / "linked").symlink_to(other)
    trees.remove(str(tmp_path / "linked"))
    trees.remove(str(tmp_path / "does not exist"))
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["other", "file"]


@pytest.mark.needs_root
@pytest.mark.parametrize("options", [("-t", "tmpfs"), ("--bind",)])
def test_a_mount_point_is_named_and_nothing_is_removed(tmp_path: Path, options: tuple[str, ...]) -> None:
    other, top = tmp_path / "other", tmp_path / "top"
    place = top / "below" / "a blank\\"
    place.mkdir(parents=True)
    other.mkdir()
    (top / "file").touch()
    with wire.namespace():
        wire.run("mount", *options, str(other), str(place))
        (place / "precious").touch()
        with pytest.raises(StateError) as caught:
            trees.remove(str(top))
        assert str(place) in caught.value.message and f"umount {place}" in str(caught.value.hint)
        assert (place / "precious").exists() and (top / "file").exists()
        wire.run("umount", str(place))
        trees.remove(str(top))
    assert not top.exists()


@pytest.mark.needs_root
def test_a_mount_during_a_removal_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, top = tmp_path / "other", tmp_path / "top"
    other.mkdir()
    (top / "below").mkdir(parents=True)
    (other / "precious").touch()
    monkeypatch.setattr(trees, "mount_points", lambda path: [])
    with wire.namespace():
        wire.run("mount", "--bind", str(other), str(top / "below"))
        with pytest.raises(QsysdError, match="cannot be removed"):
            trees.remove(str(top))
    assert (other / "precious").exists()


# a VM


@pytest.mark.usefixtures("clean")
def test_a_vm_with_deeply_nested_directories_is_deleted_and_blocks_no_other_verb(host: OwnHost) -> None:
    nest(make(host, "web1"), 1500)
    delete.delete(host, ["web1"])
    assert os.listdir(host.scope.vms_dir) == []
    assert intents.pending(host.scope) == []
    make(host, "web2")


@pytest.mark.needs_root
def test_delete_refuses_a_vm_with_a_mount_in_its_directory_before_anything_is_removed(host: OwnHost) -> None:
    directory = make(host, "web1")
    make(host, "web2")
    (directory / "data").mkdir()
    with wire.namespace():
        wire.run("mount", "-t", "tmpfs", "tmpfs", str(directory / "data"))
        (directory / "data" / "precious").touch()
        with pytest.raises(StateError, match=f"{directory}/data is a mount point"):
            removed_by_delete(host, "web1")
        with pytest.raises(StateError, match=f"{directory}/data is a mount point"):
            delete.delete(host, ["web2", "web1"])
        assert (directory / "data" / "precious").exists()
        assert host.store.names() == ["web1", "web2"]
        assert intents.pending(host.scope) == []


@pytest.mark.needs_root
def test_a_killed_delete_that_cannot_be_finished_blocks_no_other_vm(host: OwnHost) -> None:
    directory = make(host, "web1")
    make(host, "web2")
    with wire.namespace():
        intents.begin(host, "web1", "delete")
        (directory / "data").mkdir()
        wire.run("mount", "-t", "tmpfs", "tmpfs", str(directory / "data"))
        (directory / "data" / "precious").touch()
        power.start(host, ["web2"])
        assert any(f"{directory}/data is a mount point" in line for line in host.told)
        assert (directory / "data" / "precious").exists()
        wire.run("umount", str(directory / "data"))
        power.start(host, None)
    assert host.store.names() == ["web2"]


def test_delete_names_what_is_in_the_directory_but_not_a_million_files(host: OwnHost) -> None:
    directory = make(host, "web1")
    (directory / "backups").mkdir()
    assert f"{directory}/backups (a directory, with everything in it)" in removed_by_delete(host, "web1")
    for number in range(300):
        (directory / f"x{number}").touch()
    named = removed_by_delete(host, "web1")
    assert len(named) == delete.LISTED_MAX + 2
    assert named[-1] == f"{directory}: 202 more files and directories"

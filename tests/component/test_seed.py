"""The seed disk: its contents, and a directory to which a compromised QEMU can write."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
import yaml
from samples import KEY, any_vms, vm
from stand_ins import StandIns

from qsysd import seed
from qsysd.errors import HostError, QsysdError
from qsysd.model.nic import Nic
from qsysd.paths import Scope
from qsysd.runtime import spawn
from qsysd.store import Store

# ECMA-119: the primary volume descriptor is in sector 16, its label at byte 40
LABEL = slice(16 * 2048 + 40, 16 * 2048 + 72)


@pytest.fixture
def directory(scope: Scope) -> Path:
    """Return the directory of the VM web1."""
    path = Path(scope.vm_dir("web1"))
    path.mkdir(parents=True)
    return path


def test_the_seed_has_the_label_and_files_of_nocloud(scope: Scope, directory: Path) -> None:
    seed.write(vm(), scope)
    disk = (directory / "seed.iso").read_bytes()
    assert disk[LABEL].rstrip() == b"cidata"
    for text in seed.documents(vm()).values():
        assert text.encode() in disk
    # Rock Ridge keeps the names as cloud-init wants them
    for name in (b"user-data", b"meta-data", b"network-config"):
        assert name in disk


def test_only_its_owner_can_read_the_seed(scope: Scope, directory: Path) -> None:
    before = os.umask(0)
    try:
        seed.write(vm(), scope)
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "seed.iso").stat().st_mode) == 0o600
    assert os.listdir(directory) == ["seed.iso"]
    assert not os.path.exists(scope.seed_scratch("web1"))


def test_a_guest_gets_its_name_its_keys_and_its_nics_by_mac() -> None:
    nics = (
        Nic("net0", "default", "52:54:00:00:00:01", "10.83.0.10"),
        Nic("net1", "lan", "52:54:00:00:00:02"),
    )
    documents = {name: yaml.safe_load(text) for name, text in seed.documents(vm(nics=nics)).items()}
    assert documents["user-data"]["hostname"] == "web1"
    assert documents["user-data"]["ssh_authorized_keys"] == [KEY]
    assert documents["user-data"]["ssh_pwauth"] is False
    ethernets = documents["network-config"]["ethernets"].values()
    assert [nic["match"]["macaddress"] for nic in ethernets] == [nic.mac for nic in nics]
    assert all(nic["dhcp4"] is True for nic in ethernets)


def test_a_vm_that_is_created_again_is_a_new_instance() -> None:
    first, second = (
        yaml.safe_load(seed.documents(vm(uuid=uuid))["meta-data"]) for uuid in ("a" * 36, "b" * 36)
    )
    assert first["instance-id"] != second["instance-id"]
    assert first["local-hostname"] == "web1"


def test_the_values_of_a_definition_are_in_the_seed() -> None:
    for spec in any_vms(15, seed=12):
        documents = seed.documents(spec)
        assert documents["user-data"].startswith("#cloud-config\n")
        user_data = yaml.safe_load(documents["user-data"])
        assert user_data.get("ssh_authorized_keys", []) == list(spec.ssh_keys)
        macs = re.findall(r"macaddress: '?([0-9a-f:]+)'?", documents["network-config"])
        assert macs == [nic.mac for nic in spec.nics]


@pytest.mark.parametrize("name", ["seed.iso", "seed.iso.part"])
@pytest.mark.parametrize("plant", ["link", "hard link", "dangling", "pipe"])
def test_links_planted_by_a_compromised_qemu_are_not_followed(
    scope: Scope, directory: Path, tmp_path: Path, name: str, plant: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"root's")
    path = directory / name
    if plant == "link":
        path.symlink_to(victim)
    elif plant == "hard link":
        path.hardlink_to(victim)
    elif plant == "dangling":
        path.symlink_to(tmp_path / "made")
    else:
        os.mkfifo(path)
    seed.write(vm(), scope)
    assert victim.read_bytes() == b"root's"
    assert not (tmp_path / "made").exists()
    assert (directory / "seed.iso").is_file()
    assert not (directory / "seed.iso").is_symlink()
    assert (directory / "seed.iso").stat().st_nlink == 1


def test_a_link_planted_during_the_write_is_not_followed(
    scope: Scope, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.unlink

    def unlink(path: str, **options: int) -> None:
        try:
            real(path, **options)
        finally:
            if path.endswith("seed.iso.part"):
                os.symlink(tmp_path / "made", path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(QsysdError, match=r"seed\.iso cannot be written: File exists"):
        seed.write(vm(), scope)
    assert not (tmp_path / "made").exists()


def test_the_digest_of_a_seed_is_read_through_no_link(scope: Scope, directory: Path, tmp_path: Path) -> None:
    seed.write(vm(), scope)
    assert Store(scope).seed_digest("web1") == seed.digest(vm())
    (directory / "seed.iso").rename(tmp_path / "other.iso")
    (directory / "seed.iso").symlink_to(tmp_path / "other.iso")
    assert Store(scope).seed_digest("web1") is None


def test_a_directory_in_place_of_the_seed_is_an_error(scope: Scope, directory: Path) -> None:
    (directory / "seed.iso").mkdir()
    with pytest.raises(QsysdError, match=r"seed\.iso cannot be written: Is a directory"):
        seed.write(vm(), scope)
    assert os.listdir(directory) == ["seed.iso"]


def test_files_of_a_killed_command_are_overwritten(scope: Scope, directory: Path) -> None:
    left = Path(scope.seed_scratch("web1"), "files", "user-data")
    left.parent.mkdir(parents=True)
    left.write_text("older", encoding="utf-8")
    seed.write(vm(ssh_keys=()), scope)
    assert b"older" not in (directory / "seed.iso").read_bytes()


def test_a_tool_that_fails_keeps_the_old_seed_and_its_error_is_printed(
    scope: Scope, directory: Path, stand_ins: StandIns
) -> None:
    (directory / "seed.iso").write_bytes(b"old")
    stand_ins.add("genisoimage", "echo 'genisoimage: No space left on device' >&2; exit 28")
    with pytest.raises(QsysdError, match="genisoimage failed: genisoimage: No space left on device"):
        seed.write(vm(), scope)
    assert (directory / "seed.iso").read_bytes() == b"old"
    assert os.listdir(directory) == ["seed.iso"]
    assert not os.path.exists(scope.seed_scratch("web1"))


def test_a_missing_tool_names_its_package(
    scope: Scope, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "find", lambda program: None)
    with pytest.raises(HostError) as caught:
        seed.write(vm(), scope)
    assert caught.value.hint == "apt install genisoimage"

"""Disks on images, who uses an image, and base images that are broken, on the real qemu-img."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import BOOT_SIGNATURE, MIB, info, qemu_img
from stand_ins import StandIns

from qsysd.errors import ExistsError, InvalidError, QsysdError
from qsysd.images import formats
from qsysd.images.catalog import Images
from qsysd.images.formats import BrokenImageError
from qsysd.paths import Scope

SIZE = 8 * MIB


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    return Scope(str(tmp_path / "host"))


@pytest.fixture
def images(scope: Scope) -> Images:
    return Images(scope)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a raw disk with data at both ends and a hole between."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.write(os.urandom(MIB))
        file.seek(510)
        file.write(BOOT_SIGNATURE)
        file.seek(SIZE - MIB)
        file.write(os.urandom(MIB))
    return path


@pytest.fixture
def base(images: Images, disk: Path) -> str:
    """Return the path of an image `base`."""
    return images.import_file(str(disk), "base", default_user="debian").path


def test_users_by_the_disks_themselves(images: Images, scope: Scope, base: str, tmp_path: Path) -> None:
    images.import_file(base, "other")

    def new(name: str) -> str:
        return str(tmp_path / name)

    images.create_overlay("base", new("a"), None)
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", new("a"), new("on-a"))
    images.create_overlay("other", new("b"), None)
    images.create_disk(new("empty"), MIB)
    Path(new("raw")).write_bytes(bytes(MIB))
    os.symlink(scope.images_dir, new("link"))
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", new("link") + "/base.qcow2", new("linked"))
    qemu_img("create", "-u", "-f", "qcow2", "-F", "qcow2", "-b", new("gone"), new("orphan"), "1M")
    disks = {
        "direct": [new("empty"), new("a")], "chained": [new("on-a")], "linked": [new("linked")],
        "other": [new("b")], "none": [new("empty"), new("raw"), new("orphan"), new("absent")],
    }  # fmt: skip
    found = images.users("base", disks)
    assert found.vms == ["chained", "direct", "linked"]
    assert images.users("other", disks).vms == ["other"]
    assert list(found.unknown) == ["none"] and "raw is empty" in found.unknown["none"]


@pytest.mark.parametrize(
    ("backing", "unknown"), [(b"/etc/\0passwd", True), (b"x" * 300, False), (b"/" + b"x/" * 511, False)]
)
def test_a_backing_file_name_that_cannot_exist_hides_no_other_vm(
    images: Images, base: str, tmp_path: Path, backing: bytes, unknown: bool
) -> None:
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")
    images.create_overlay("base", good, None)
    qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", "y" * len(backing), bad, "1M")
    content = Path(bad).read_bytes()
    assert content.count(b"y" * len(backing)) == 1
    Path(bad).write_bytes(content.replace(b"y" * len(backing), backing))
    found = images.users("base", {"bad": [bad], "good": [good]})
    assert found.vms == ["good"]
    assert list(found.unknown) == (["bad"] if unknown else [])


def test_a_chain_of_backing_files_with_a_cycle_ends(images: Images, base: str, tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    qemu_img("create", "-u", "-f", "qcow2", "-F", "qcow2", "-b", b, a, "1M")
    qemu_img("create", "-u", "-f", "qcow2", "-F", "qcow2", "-b", a, b, "1M")
    assert images.users("base", {"vm": [a]}).vms == []


@pytest.mark.parametrize(("wanted", "size"), [(None, SIZE), (SIZE, SIZE), (10 * 1024**3, 10 * 1024**3)])
def test_overlay(images: Images, base: str, tmp_path: Path, wanted: int | None, size: int) -> None:
    path = tmp_path / "disk0.qcow2"
    assert images.create_overlay("base", str(path), wanted) == size
    found = info(path)
    assert found["virtual-size"] == size
    assert found["full-backing-filename"] == base
    assert found["backing-filename-format"] == "qcow2"
    assert os.path.isabs(str(found["backing-filename"]))


def test_overlay_takes_one_run_of_qemu_img(
    images: Images, base: str, tmp_path: Path, stand_ins: StandIns
) -> None:
    stand_ins.add("qemu-img", f'exec {shutil.which("qemu-img", path="/usr/bin:/bin")} "$@"')
    images.create_overlay("base", str(tmp_path / "disk"), None)
    (call,) = stand_ins.calls("qemu-img")
    assert call[0] == "create"


def test_overlay_smaller_than_its_image(images: Images, base: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="too small") as error:
        images.create_overlay("base", str(tmp_path / "disk"), SIZE - 1)
    assert error.value.hint == "use at least 8M"
    assert not (tmp_path / "disk").exists()


def test_a_disk_is_never_overwritten(images: Images, base: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious")
    with pytest.raises(ExistsError):
        images.create_overlay("base", str(path), None)
    with pytest.raises(ExistsError):
        images.create_disk(str(path), MIB)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("image", ["base", None])
def test_a_full_disk(
    images: Images, base: str, tmp_path: Path, stand_ins: StandIns, image: str | None
) -> None:
    path = tmp_path / "disk"
    words = "qemu-img: Could not resize image: No space left on device"
    stand_ins.add("qemu-img", f"echo half > {path}; echo '{words}' >&2; exit 1")
    with pytest.raises(QsysdError, match="Could not resize image: No space left on device"):
        if image:
            images.create_overlay(image, str(path), None)
        else:
            images.create_disk(str(path), MIB)
    assert not path.exists()


def test_missing_directory(images: Images, base: str, tmp_path: Path) -> None:
    with pytest.raises(QsysdError, match="No such file or directory"):
        images.create_overlay("base", str(tmp_path / "none/disk"), None)


def test_empty_disk(images: Images, tmp_path: Path) -> None:
    path = tmp_path / "data.qcow2"
    images.create_disk(str(path), 3 * MIB)
    found = info(path)
    assert (found["format"], found["virtual-size"]) == ("qcow2", 3 * MIB)
    assert "backing-filename" not in found
    with pytest.raises(InvalidError):
        images.create_disk(str(tmp_path / "none"), 0)


# a broken base image


def overwrite(data: bytes) -> Callable[[str], None]:
    def spoil(path: str) -> None:
        Path(path).write_bytes(data)

    return spoil


def cut(share: float) -> Callable[[str], None]:
    return lambda path: os.truncate(path, int(os.stat(path).st_size * share))


def rebase(path: str) -> None:
    os.unlink(path)
    qemu_img("create", "-u", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", path, "8M")


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("is not a qcow2 image", overwrite(b"hello" * 1000)),
        ("is empty", overwrite(bytes(70000))),
        ("is empty", cut(0)),
        ("truncated", cut(0.1)), ("truncated", cut(0.5)), ("truncated", cut(0.95)),
        ("has a backing file, /etc/hostname", rebase),
    ],
)  # fmt: skip
def test_a_broken_base_image(
    images: Images, base: str, tmp_path: Path, words: str, spoil: Callable[[str], None]
) -> None:
    images.check("base")
    spoil(base)
    with pytest.raises(BrokenImageError, match=words) as error:
        images.create_overlay("base", str(tmp_path / "disk"), None)
    assert "image base is broken" in error.value.message
    assert "qsysd image rm base" in (error.value.hint or "")
    assert not (tmp_path / "disk").exists()
    assert images.get("base").problem is not None


def test_a_few_missing_bytes_are_noticed(images: Images, disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "packed"
    qemu_img("convert", "-c", "-O", "qcow2", disk, source)
    image = images.import_file(str(source), "base")
    os.truncate(image.path, image.file_size - 1)
    assert images.get("base").problem is not None


def test_an_image_that_cannot_be_read_is_broken(
    images: Images, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> formats.Header:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(formats, "check_whole", refuse)
    with pytest.raises(BrokenImageError, match="Permission denied"):
        images.check("base")

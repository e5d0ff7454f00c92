"""Messages about image files of other users, which must not control the terminal of the administrator."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from image_files import BOOT_SIGNATURE, MIB, qemu_img
from stand_ins import StandIns

from qsysd.errors import InvalidError, QsysdError
from qsysd.images import formats
from qsysd.images.catalog import Images
from qsysd.paths import Scope


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(Scope(str(tmp_path / "host")))


@pytest.mark.parametrize("verb", ["info", "check", "convert"])
def test_messages_of_qemu_img_are_printed_without_control_characters(
    images: Images, tmp_path: Path, stand_ins: StandIns, verb: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(BOOT_SIGNATURE.rjust(512, b"x").ljust(MIB, b"x"))
    if verb != "convert":
        qemu_img("convert", "-O", "qcow2", disk, tmp_path / "disk.qcow2")
        disk = tmp_path / "disk.qcow2"
    qemu = shutil.which("qemu-img", path="/usr/bin:/bin")
    fail = r"printf 'bad \033[31mred\033[0m\n' >&2; exit 1"
    stand_ins.add("qemu-img", f'[ "$1" != {verb} ] && exec {qemu} "$@"; {fail}')
    with pytest.raises(QsysdError, match=r"bad red$"):
        images.import_file(str(disk), "base")


def test_the_target_of_a_link_is_printed_without_control_characters(images: Images, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/\x1b[31mred\x1b[0m")
    with pytest.raises(InvalidError, match=r"link is a link to /red$"):
        images.import_file(str(tmp_path / "link"), "base")


def test_the_name_of_a_backing_file_is_printed_without_control_characters(tmp_path: Path) -> None:
    name = b"/x\x1b]0;title\x07\nerror: nothing"
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", disk, "1M")
    with disk.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack(">QI", 1000, len(name)))
        file.seek(1000)
        file.write(name)
    with pytest.raises(formats.BrokenImageError, match="has a backing file") as caught:
        formats.check_whole(str(disk))
    assert caught.value.message == f"{disk} has a backing file, /xerror: nothing"

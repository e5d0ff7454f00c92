"""Disk image files for the tests: valid ones, and those that refer to other files.

A maker of a file takes its path and the path of a file that is none of its business.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

MIB = 1024**2
BOOT_SIGNATURE = b"\x55\xaa"  # at byte 510 of a disk


def qemu_img(*words: str | Path) -> str:
    """Run qemu-img; return what it printed."""
    argv = ["qemu-img", *map(str, words)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def info(path: str | Path) -> dict[str, object]:
    """Return the output of qemu-img info."""
    return dict(json.loads(qemu_img("info", "--output=json", path)))


def backing_on(source: Path, target: str) -> None:
    qemu_img("create", "-u", "-f", "qcow2", "-b", target, "-F", "raw", source, "1M")


def data_file(source: Path, target: str) -> None:
    qemu_img("create", "-f", "qcow2", "-o", "data_file=" + str(source) + ".data", source, "1M")


def encrypted(source: Path, target: str) -> None:
    """Make a qcow2 file whose header says LUKS; a real key takes seconds to make."""
    qemu_img("create", "-f", "qcow2", source, "1M")
    with source.open("r+b") as file:
        file.seek(32)
        file.write(struct.pack(">I", 2))


def luks(source: Path, target: str) -> None:
    source.write_bytes(b"LUKS\xba\xbe\0\1".ljust(MIB, b"\0"))


def flat_vmdk(source: Path, target: str) -> None:
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", source, "1M")


def vmdk_description(source: Path, target: str) -> None:
    text = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    source.write_text(text + f'RW 1 FLAT "{target}" 0\n', encoding="utf-8")


def vmdk_with_description_inside(source: Path, target: str) -> None:
    """Make a sparse extent of no capacity: QEMU then opens what the description in it names."""
    text = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    header = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 1, 20).ljust(512, b"\0")
    source.write_bytes(header + (text + f'RW 1 FLAT "{target}" 0\n').encode().ljust(20 * 512, b"\0"))


def vmdk_with_a_parent(source: Path, target: str) -> None:
    qemu_img("create", "-f", "vmdk", str(source) + ".parent", "1M")
    qemu_img("create", "-f", "vmdk", "-b", str(source) + ".parent", "-F", "vmdk", source)


def vmdk_with_a_parent_and_a_wrong_offset(source: Path, target: str) -> None:
    vmdk_with_a_parent(source, target)
    with source.open("r+b") as file:
        file.seek(28)  # the offset of the description, in sectors: QEMU does not use it for the parent
        file.write((4000).to_bytes(8, "little"))


def packed(magic: bytes) -> Callable[[Path, str], None]:
    def make(source: Path, target: str) -> None:
        source.write_bytes(magic + bytes(5000))

    return make


def truncated(source: Path, target: str) -> None:
    qemu_img("create", "-f", "qcow2", "-o", "preallocation=full", source, "4M")
    os.truncate(source, os.stat(source).st_size - 2 * MIB)


def cut_in_header(source: Path, target: str) -> None:
    source.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(20))


def newer_qcow2(source: Path, target: str) -> None:
    source.write_bytes(b"QFI\xfb\0\0\0\4" + bytes(500))


def vhd(source: Path, target: str) -> None:
    qemu_img("create", "-f", "vpc", source, "1M")


def refcount_table_of_holes(source: Path, target: str) -> None:
    """Make a qcow2 file whose table of reference counts has 2 GiB, in a few blocks of disk."""
    qemu_img("create", "-f", "qcow2", source, "1M")
    with source.open("r+b") as file:
        file.truncate(4 * 1024**3)
        file.seek(48)
        file.write(struct.pack(">QI", 1024**3, 2 * 1024**3 // 65536))


def l1_table_of_holes(source: Path, target: str) -> None:
    qemu_img("create", "-f", "qcow2", source, "1M")
    with source.open("r+b") as file:
        file.truncate(4 * 1024**3)
        file.seek(36)
        file.write(struct.pack(">IQ", 2**28, 1024**3))


def iso(source: Path, target: str) -> None:
    """Make a CD that also boots from a USB stick, as installers are."""
    source.write_bytes(bytes(510) + BOOT_SIGNATURE + bytes(0x8001 - 512) + b"CD001" + bytes(2 * MIB))


def text(source: Path, target: str) -> None:
    source.write_text("<!DOCTYPE html>\n<title>404 — nicht gefunden</title>\n" * 100, encoding="utf-8")


def noise(source: Path, target: str) -> None:
    source.write_bytes(b"\1\2\3\xff" * MIB)


def empty(source: Path, target: str) -> None:
    source.touch()


# Part of the error message → the files that are refused with it.
HOSTILE: dict[str, list[Callable[[Path, str], None]]] = {
    "another file": [data_file],
    "backing file": [backing_on],
    "other files": [
        flat_vmdk,
        vmdk_description,
        vmdk_with_description_inside,
        vmdk_with_a_parent,
        vmdk_with_a_parent_and_a_wrong_offset,
    ],
    "encrypted": [encrypted, luks],
    "truncated": [truncated, cut_in_header],
    "version 4": [newer_qcow2],
    "vpc": [vhd],
    "gzip": [packed(b"\x1f\x8b")],
    "compressed by xz": [packed(b"\xfd7zXZ\0")],
    "zstd": [packed(b"\x28\xb5\x2f\xfd")],
    "larger than QEMU accepts": [refcount_table_of_holes, l1_table_of_holes],
    "ISO 9660": [iso],
    "text file": [text],
    "is not a disk": [noise],
    "is empty": [empty],
}

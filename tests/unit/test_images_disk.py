"""The bootable disk: a GPT by the UEFI specification, and the two patched sectors of GRUB."""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from qsysd.images import disk

MIB = 1024**2
BOOT = bytes(range(256)) * 2
CORE = b"C" * 512 + b"D" * 70_000


@dataclass(frozen=True)
class Partition:
    kind: uuid.UUID
    identity: uuid.UUID
    first: int
    last: int
    name: str


def sector(raw: bytes, number: int, count: int = 1) -> bytes:
    return raw[number * 512 : (number + count) * 512]


def read_gpt(raw: bytes, at: int) -> tuple[dict[str, int], dict[int, Partition]]:
    """Return a GPT header's fields and its partitions by number; assert both checksums."""
    header = sector(raw, at)
    names = ("revision", "size", "crc", "zero", "own", "other", "first", "last")
    fields = dict(zip(names, struct.unpack("<IIIIQQQQ", header[8:56]), strict=True))
    table_at, count, size, table_crc = struct.unpack("<QIII", header[72:92])
    assert header[:8] == b"EFI PART"
    assert fields["size"] == 92
    assert zlib.crc32(header[:16] + bytes(4) + header[20:92]) == fields["crc"]
    assert header[92:] == bytes(420)
    table = raw[table_at * 512 : table_at * 512 + count * size]
    assert zlib.crc32(table) == table_crc
    found = {}
    for number in range(count):
        entry = table[number * size : (number + 1) * size]
        if entry[:16] != bytes(16):
            first, last, _ = struct.unpack("<QQQ", entry[32:56])
            name = entry[56:].decode("utf-16-le").rstrip("\0")
            kinds = uuid.UUID(bytes_le=entry[:16]), uuid.UUID(bytes_le=entry[16:32])
            found[number + 1] = Partition(*kinds, first, last, name)
    return {**fields, "table": table_at}, found


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    disk.write(str(tmp_path / "disk"), 8 * MIB, BOOT, CORE)
    return (tmp_path / "disk").read_bytes()


def test_both_tables_agree_and_point_at_each_other(written: bytes) -> None:
    end = len(written) // 512 - 1
    first, partitions = read_gpt(written, 1)
    last, copy = read_gpt(written, end)
    assert partitions == copy
    assert (first["own"], first["other"], first["table"]) == (1, end, 2)
    assert (last["own"], last["other"], last["table"]) == (end, 1, end - 32)
    assert first["first"] == last["first"] == 34
    assert first["last"] == last["last"] == end - 33


def test_partitions(written: bytes) -> None:
    fields, partitions = read_gpt(written, 1)
    assert set(partitions) == {1, 14}
    root, bios = partitions[1], partitions[14]
    assert (root.kind, root.name) == (disk.TYPE_ROOT, "root")
    assert (bios.kind, bios.first, bios.last) == (disk.TYPE_BIOS_BOOT, 40, 2047)
    assert root.identity != bios.identity
    assert root.first == 2048
    assert root.last <= fields["last"]


def test_layout_is_where_the_root_partition_is(tmp_path: Path) -> None:
    place = disk.write(str(tmp_path / "disk"), 8 * MIB, BOOT, CORE)
    root = read_gpt((tmp_path / "disk").read_bytes(), 1)[1][1]
    assert place.offset == root.first * 512
    assert place.size == (root.last - root.first + 1) * 512
    assert place.size % 4096 == 0
    assert (tmp_path / "disk").stat().st_size == place.disk_size == 8 * MIB


def test_boot_sector(written: bytes) -> None:
    boot = sector(written, 0)
    assert struct.unpack("<Q", boot[0x5C:0x64]) == (40,)
    assert boot[:0x5C] == BOOT[:0x5C]
    assert boot[0x64:0x1B8] == BOOT[0x64:0x1B8]
    # The protective MBR: one entry of type 0xEE over the whole disk.
    assert boot[0x1B8:0x1BE] == bytes(6)
    assert boot[0x1BE + 4] == 0xEE
    assert struct.unpack("<II", boot[0x1BE + 8 : 0x1BE + 16]) == (1, len(written) // 512 - 1)
    assert boot[0x1CE:0x1FE] == bytes(48)


def test_core_is_where_the_boot_sector_and_its_block_list_say(written: bytes) -> None:
    core = written[40 * 512 : 40 * 512 + len(CORE)]
    assert struct.unpack("<Q", core[0x1F4:0x1FC]) == (41,)
    assert core[:0x1F4] + b"C" * 8 + core[0x1FC:] == CORE


def test_protective_entry_of_a_disk_above_two_tebibytes(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    disk.write(str(path), 3 * 1024**4, BOOT, CORE)
    with path.open("rb") as file:
        entry = file.read(512)[0x1BE:0x1CE]
    assert struct.unpack("<I", entry[12:16]) == (0xFFFFFFFF,)


@pytest.mark.parametrize(("boot", "core"), [(BOOT[:-1], CORE), (BOOT, b"x" * (2014 * 512 + 1))])
def test_a_boot_loader_that_does_not_fit_is_refused(tmp_path: Path, boot: bytes, core: bytes) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        disk.write(str(tmp_path / "disk"), 8 * MIB, boot, core)

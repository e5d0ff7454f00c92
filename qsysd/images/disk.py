"""Write a bootable disk as a file: partition table and boot loader, without mounts.

Partitions on loop devices do not work on every machine, and a killed build would leave mounts behind. The
disk has a GPT, with GRUB's core image in its BIOS boot partition, and a root partition that mke2fs fills
afterwards (`mke2fs -d`, `-E offset=`).

See the UEFI specification, chapter 5 (GPT), and GRUB's boot/i386/pc/boot.S and diskboot.S: the
boot sector loads the sector whose number is at KERNEL_SECTOR; that sector, the first of core.img,
loads the rest by the block list at its end. grub-bios-setup patches the same two numbers.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass

SECTOR = 512
MIB = 1024 * 1024

# Types of partitions: the UEFI Discoverable Partitions Specification, and GRUB's manual.
TYPE_ROOT = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
TYPE_BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")

# As on Debian's cloud images, the root is the first partition by number and the last on the disk, so that
# it can grow. In sectors, at multiples of 4 KiB: systemd-repart ignores a partition that begins before the
# first usable multiple, and discards its sectors as free space: GRUB's core image.
CORE_FIRST = 40
ROOT_FIRST = 2048
TABLE_ENTRIES = 128
TABLE_SECTORS = 32

# Offsets within GRUB's first two sectors.
KERNEL_SECTOR = 0x5C
PARTITION_AREA = slice(0x1B8, 0x1FE)
PROTECTIVE_ENTRY = 0x1BE
BLOCK_LIST = 0x1F4


@dataclass(frozen=True)
class Layout:
    """The place of the root partition. offset, size: bytes."""

    disk_size: int
    offset: int
    size: int


def layout(disk_size: int) -> Layout:
    """Return the layout of a disk of `disk_size` bytes, a multiple of 1 MiB."""
    sectors = disk_size // SECTOR
    # ext4 has blocks of 4 KiB; the backup of the partition table is in the last 33 sectors.
    end = (sectors - TABLE_SECTORS - 1) // 8 * 8
    return Layout(disk_size, ROOT_FIRST * SECTOR, (end - ROOT_FIRST) * SECTOR)


def write(path: str, disk_size: int, boot_sector: bytes, core: bytes) -> Layout:
    """Create a sparse raw disk with a partition table and a boot loader; return its layout.

    boot_sector, core: GRUB's boot.img, and the image that grub-mkimage created for i386-pc.
    Raise ValueError if they do not fit.
    """
    place = layout(disk_size)
    if len(boot_sector) != SECTOR or len(core) > (ROOT_FIRST - CORE_FIRST) * SECTOR:
        raise ValueError("the boot loader does not fit its partition")
    sectors = disk_size // SECTOR
    root_last = (place.offset + place.size) // SECTOR - 1
    table = bytearray(TABLE_ENTRIES * 128)
    table[:128] = _entry(TYPE_ROOT, ROOT_FIRST, root_last, "root")
    table[13 * 128 : 14 * 128] = _entry(TYPE_BIOS_BOOT, CORE_FIRST, ROOT_FIRST - 1, "bios")
    identity = uuid.uuid4()
    first = _header(bytes(table), identity, sectors, own=1, other=sectors - 1, table_at=2)
    copy_at = sectors - 1 - TABLE_SECTORS
    last = _header(bytes(table), identity, sectors, own=sectors - 1, other=1, table_at=copy_at)
    with open(path, "wb") as disk:
        disk.truncate(disk_size)
        disk.write(_boot_sector(boot_sector, sectors))
        disk.write(first)
        disk.write(table)
        disk.seek(CORE_FIRST * SECTOR)
        disk.write(_core(core))
        disk.seek(copy_at * SECTOR)
        disk.write(table)
        disk.write(last)
    return place


def _entry(kind: uuid.UUID, first: int, last: int, name: str) -> bytes:
    """Return one entry of the partition table."""
    place = struct.pack("<QQQ", first, last, 0)
    return kind.bytes_le + uuid.uuid4().bytes_le + place + name.encode("utf-16-le").ljust(72, b"\x00")


def _header(table: bytes, identity: uuid.UUID, sectors: int, *, own: int, other: int, table_at: int) -> bytes:
    """Return a GPT header, a sector long."""

    def packed(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, checksum, 0, own, other),
            *(TABLE_SECTORS + 2, sectors - TABLE_SECTORS - 2, identity.bytes_le),
            *(table_at, TABLE_ENTRIES, 128, zlib.crc32(table)),
        )

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\x00")


def _boot_sector(boot: bytes, sectors: int) -> bytes:
    """Return GRUB's boot sector, which loads the core image, with the protective MBR entry of a GPT disk."""
    sector = bytearray(boot)
    sector[PARTITION_AREA] = bytes(PARTITION_AREA.stop - PARTITION_AREA.start)
    sector[KERNEL_SECTOR : KERNEL_SECTOR + 8] = struct.pack("<Q", CORE_FIRST)
    size = min(sectors - 1, 0xFFFFFFFF)
    sector[PROTECTIVE_ENTRY : PROTECTIVE_ENTRY + 16] = struct.pack(
        "<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, size
    )
    return bytes(sector)


def _core(core: bytes) -> bytes:
    """Return GRUB's core image, with its second sector in the block list."""
    return core[:BLOCK_LIST] + struct.pack("<Q", CORE_FIRST + 1) + core[BLOCK_LIST + 8 :]

"""The header of a qcow2 file: which base image an overlay uses, and whether an image is whole.

No program is run: one read takes 20 µs. See docs/interop/qcow2.txt and block/qcow2.h of QEMU.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass

from qsysd.errors import StateError
from qsysd.values import printable

QCOW2_MAGIC = b"QFI\xfb"
INCOMPATIBLE_DIRTY = 1 << 0
INCOMPATIBLE_CORRUPT = 1 << 1
INCOMPATIBLE_DATA_FILE = 1 << 2

# The header, its extensions and the name of the backing file are in the first cluster, which has at least
# 512 bytes, and 64 KiB by QEMU's default.
HEADER_READ = 65536
BACKING_NAME_MAX = 1023
# QEMU opens no image with larger tables (QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE): bytes.
L1_TABLE_MAX = 32 * 1024 * 1024
REFCOUNT_TABLE_MAX = 8 * 1024 * 1024
# open(2): no file of this name exists
CANNOT_EXIST = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
CHAIN_MAX = 32


class BrokenImageError(StateError):
    """A file is not a qcow2 image that is whole and stands alone.

    backing_file: the backing file that it has, None without one. external_data: the guest's data is in
    another file.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        backing_file: str | None = None,
        external_data: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.backing_file = backing_file
        self.external_data = external_data


@dataclass(frozen=True)
class Header:
    """A qcow2 file's header. virtual_size, cluster_size, offsets: bytes."""

    version: int
    virtual_size: int
    cluster_size: int
    backing_file: str | None
    encrypted: bool
    incompatible: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    refcount_bits: int

    @property
    def data_file(self) -> bool:
        """Return whether the guest's data is in a second file."""
        return bool(self.incompatible & INCOMPATIBLE_DATA_FILE)


def read_header(path: str) -> Header:
    """Return the header of a qcow2 file.

    Raise BrokenImageError if the file is not qcow2 or its header is not valid, OSError if it cannot be read.
    """
    # A QEMU that a guest controls can replace its disk and choose the backing file. Opening a FIFO blocks,
    # and opening a device can have side effects: only a regular file is opened.
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise BrokenImageError(f"{path} is not a regular file")
        with open(f"/proc/self/fd/{place}", "rb") as file:
            start = file.read(HEADER_READ)
    finally:
        os.close(place)
    return parse_header(start, path)


def parse_header(start: bytes, path: str) -> Header:
    """Return the header at the beginning of a qcow2 file; `path` is for the error message.

    Raise BrokenImageError if it is not valid.
    """
    if not start.startswith(QCOW2_MAGIC):
        what = "is empty" if not start.strip(b"\x00") else "is not a qcow2 image"
        raise BrokenImageError(f"{path} {what}")
    if len(start) < 72:
        raise BrokenImageError(f"{path} is truncated within its header")
    (_, version, backing_offset, backing_length, cluster_bits, size, crypt, l1_entries, l1_offset,
     refcount_offset, refcount_clusters) = struct.unpack(">4sIQIIQIIQQI", start[:60])  # fmt: skip
    incompatible, refcount_order = 0, 4
    if version == 3 and len(start) >= 104:
        incompatible, refcount_order = struct.unpack(">Q16xI", start[72:100])
    elif version != 2:
        raise BrokenImageError(f"{path} has qcow2 version {version}, which is not supported")
    if not 9 <= cluster_bits <= 22 or refcount_order > 6:
        raise BrokenImageError(f"{path} has a qcow2 header that is not valid")
    backing = None
    if backing_offset:
        name = start[backing_offset : backing_offset + backing_length]
        if backing_length > BACKING_NAME_MAX or len(name) < backing_length:
            raise BrokenImageError(f"{path} has a backing file name outside its header")
        if b"\0" in name:
            raise BrokenImageError(f"{path} has a NUL in its backing file name")
        backing = os.fsdecode(name)
    return Header(
        version, size, 1 << cluster_bits, backing, crypt != 0, incompatible,
        l1_entries, l1_offset, refcount_offset, refcount_clusters, 1 << refcount_order,
    )  # fmt: skip


def backing_chain(path: str) -> list[str]:
    """Return the absolute paths of the files under an overlay, nearest first.

    The chain ends with the first file that does not exist or is not qcow2. Raise BrokenImageError if the
    overlay itself is not qcow2, OSError if a file cannot be read.
    """
    chain: list[str] = []
    backing = read_header(path).backing_file
    current = path
    while backing is not None and len(chain) < CHAIN_MAX:
        current = os.path.normpath(os.path.join(os.path.dirname(current), backing))
        chain.append(current)
        try:
            backing = read_header(current).backing_file
        except BrokenImageError:
            break
        except OSError as error:
            if error.errno not in CANNOT_EXIST:
                raise
            break
    return chain


def check_whole(path: str) -> Header:
    """Return the header of a base image that is whole and depends on no other file.

    The qcow2 tables and the last cluster that is in use by the reference counts must be within the file: this
    finds a truncated file with three reads. Raise BrokenImageError, and OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        return check_whole_file(file.fileno(), path)


def check_whole_file(fd: int, path: str) -> Header:
    """Return the header of an open file as `check_whole` does; `path` is for the error message."""
    header = parse_header(os.pread(fd, HEADER_READ, 0), path)
    if header.backing_file is not None:
        raise BrokenImageError(
            f"{path} has a backing file, {printable(header.backing_file)}", backing_file=header.backing_file
        )
    if header.data_file:
        raise BrokenImageError(f"{path} has its data in another file", external_data=True)
    if header.encrypted:
        raise BrokenImageError(f"{path} is encrypted")
    if header.incompatible & INCOMPATIBLE_CORRUPT:
        raise BrokenImageError(f"{path} is marked as corrupt")
    l1_size, refcount_size = 8 * header.l1_entries, header.refcount_clusters * header.cluster_size
    if l1_size > L1_TABLE_MAX or refcount_size > REFCOUNT_TABLE_MAX:
        raise BrokenImageError(f"{path} has tables larger than QEMU accepts")
    end = os.fstat(fd).st_size
    tables = max(header.l1_offset + l1_size, header.refcount_offset + refcount_size)
    # The reference counts of an image that was not closed may be stale; QEMU rebuilds them.
    stale = header.incompatible & INCOMPATIBLE_DIRTY
    if tables > end or (not stale and _last_used(fd, header) >= end):
        raise BrokenImageError(f"{path} is truncated")
    return header


def _last_used(fd: int, header: Header) -> int:
    """Return the offset of the last cluster that is in use, from the reference counts."""
    table = os.pread(fd, header.refcount_clusters * header.cluster_size, header.refcount_offset)
    used = len(table.rstrip(b"\x00"))
    if not used:
        return 0
    index = (used - 1) // 8
    offset = int.from_bytes(table[8 * index : 8 * index + 8], "big")
    block = os.pread(fd, header.cluster_size, offset).rstrip(b"\x00")
    if not block:
        return offset  # of the block itself; it may be beyond the end of the file
    per_block = header.cluster_size * 8 // header.refcount_bits
    last = (len(block) * 8 - 1) // header.refcount_bits
    return int((index * per_block + last) * header.cluster_size)

"""Disk image files: what they are, and whether they reach out to other files.

A disk image can name a second file (a backing file, an external data file, an extent), and a
program that runs as root and follows such a name reads any file of the host into a guest. So a
file from outside is looked at here, in Python, before qemu-img opens it, and only formats that hold
all of their data themselves are let in. The same reading of a qcow2 header, 20 µs, answers
which base image an overlay uses and whether a base image is whole, without running a program.

Follows QEMU's docs/interop/qcow2.txt and, for the others, the magics of block/vmdk.c, block/vdi.c
and block/vhdx.c.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass

from qsysd.errors import InvalidError, StateError

QCOW2_MAGIC = b"QFI\xfb"
INCOMPATIBLE_DIRTY = 1 << 0
INCOMPATIBLE_CORRUPT = 1 << 1
INCOMPATIBLE_DATA_FILE = 1 << 2

# Long enough for the longest header, its extensions and the backing file's name, which all lie in
# the first cluster; a cluster has at least 512 bytes and, as QEMU makes them, 64 KiB.
HEADER_READ = 65536
BACKING_NAME_MAX = 1023
# open(2): no file has this name
CANNOT_EXIST = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
CHAIN_MAX = 32

# What people import by mistake, and how to get at the disk in it.
WRAPPED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\xfd7zXZ\x00": ("xz", "xz -d"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"BZh": ("bzip2", "bunzip2"),
    b"PK\x03\x04": ("zip", "unzip"),
}
# Formats that are told apart in order not to be taken for a raw disk.
REFUSED = {
    b"LUKS\xba\xbe": "LUKS (encrypted)",
    b"QED\x00": "qed",
    b"conectix": "vpc (VHD)",
    b"COWD": "vmdk of an ESX server",
    b"KDMVCOWD": "vmdk",
    b"ustar": "tar",
}


class BrokenImageError(StateError):
    """A file is not the image that it should be; the message says in which way."""


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

    Raises BrokenImageError when the file is not qcow2 or its header makes no sense, OSError when it
    cannot be read.
    """
    # A QEMU that a guest has taken over chooses what its disk is, and what that is an overlay on: to
    # open a pipe would never end, and to open a device may do something.
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
    """Return the header at the beginning of a qcow2 file; `path` is for the error's words.

    Raises BrokenImageError when it is not one or makes no sense.
    """
    if not start.startswith(QCOW2_MAGIC):
        what = "is empty" if not start.strip(b"\x00") else "is not a qcow2 image"
        raise BrokenImageError(f"{path} {what}")
    if len(start) < 72:
        raise BrokenImageError(f"{path} is cut off within its header")
    (_, version, backing_offset, backing_length, cluster_bits, size, crypt, l1_entries, l1_offset,
     refcount_offset, refcount_clusters) = struct.unpack(">4sIQIIQIIQQI", start[:60])  # fmt: skip
    incompatible, refcount_order = 0, 4
    if version == 3 and len(start) >= 104:
        incompatible, refcount_order = struct.unpack(">Q16xI", start[72:100])
    elif version != 2:
        raise BrokenImageError(f"{path} is of qcow2 version {version}, which is not known")
    if not 9 <= cluster_bits <= 22 or refcount_order > 6:
        raise BrokenImageError(f"{path} has a qcow2 header that makes no sense")
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

    A file under it that does not exist, cannot exist, or is not qcow2 ends the chain with its name in
    it. Raises BrokenImageError when the overlay itself is not qcow2, OSError when a file cannot be read.
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
    """Return the header of a base image that is whole and stands alone.

    The qcow2 tables have to lie within the file, and so has the last cluster that the reference
    counts call used: that finds a truncated file with three reads, whatever its size.
    Raises BrokenImageError, with what is wrong, and OSError when the file cannot be read.
    """
    with open(path, "rb") as file:
        header = parse_header(file.read(HEADER_READ), path)
        if header.backing_file is not None:
            raise BrokenImageError(f"{path} has a backing file, {header.backing_file}")
        if header.data_file:
            raise BrokenImageError(f"{path} keeps its data in another file")
        if header.encrypted:
            raise BrokenImageError(f"{path} is encrypted")
        if header.incompatible & INCOMPATIBLE_CORRUPT:
            raise BrokenImageError(f"{path} is marked as corrupt")
        end = os.fstat(file.fileno()).st_size
        tables = max(
            header.l1_offset + 8 * header.l1_entries,
            header.refcount_offset + header.refcount_clusters * header.cluster_size,
        )
        # Reference counts of an image that was not closed may be stale: QEMU rebuilds them.
        stale = header.incompatible & INCOMPATIBLE_DIRTY
        if tables > end or (not stale and _last_used(file.fileno(), header) >= end):
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
        return offset  # the block itself, or beyond the end of the file
    per_block = header.cluster_size * 8 // header.refcount_bits
    last = (len(block) * 8 - 1) // header.refcount_bits
    return int((index * per_block + last) * header.cluster_size)


def detect(path: str) -> str:
    """Return the format of a file from outside, as qemu-img names it, when it may be imported.

    That is qcow2, raw, vmdk, vdi or vhdx with all of its data inside.
    Raises InvalidError, with what is wrong and what to do.
    """
    with open(path, "rb") as file:
        start = file.read(HEADER_READ)
    if not start:
        raise InvalidError(f"{path} is empty")
    for magic, (name, tool) in WRAPPED.items():
        if start.startswith(magic):
            raise InvalidError(f"{path} is packed by {name}", hint=f"unpack it first: {tool} {path}")
    for magic, name in REFUSED.items():
        if start.startswith(magic) or (magic == b"ustar" and start[257:262] == magic):
            raise InvalidError(f"{path} is of format {name}", hint="accepted: qcow2, raw, vmdk, vdi, vhdx")
    if start.startswith(QCOW2_MAGIC):
        try:
            check_whole(path)
        except BrokenImageError as error:
            raise InvalidError(error.message, hint=_flatten_hint(path, error.message)) from error
        return "qcow2"
    if start.startswith(b"KDMV"):
        return _vmdk(start, path)
    if start.lstrip().startswith(b"# Disk DescriptorFile"):
        raise InvalidError(
            f"{path} is only the description of a vmdk whose data is in other files",
            hint="make it one file where it comes from: qemu-img convert -O qcow2",
        )
    if start[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi"
    return "vhdx" if start.startswith(b"vhdxfile") else "raw"


def _flatten_hint(path: str, problem: str) -> str | None:
    """Return what to do about an image that needs a second file."""
    if "backing file" in problem or "another file" in problem:
        name = os.path.basename(path)
        return f"make it one file where it comes from: qemu-img convert -O qcow2 {name} whole.qcow2"
    return None


def _vmdk(start: bytes, path: str) -> str:
    """Return `vmdk` when the file is a sparse extent that holds a whole disk.

    A capacity of 0 makes QEMU follow the description inside the file, which can name any other
    file as an extent; a parent's name makes it a difference to another disk.
    """
    (capacity,) = struct.unpack("<Q", start[12:20].ljust(8, b"\x00"))
    (description,) = struct.unpack("<Q", start[28:36].ljust(8, b"\x00"))
    if capacity == 0 or b"parentFileNameHint" in start[512 * description :]:
        raise InvalidError(
            f"{path} is a vmdk whose data is in other files",
            hint="make it one file where it comes from: qemu-img convert -O qcow2",
        )
    return "vmdk"

"""What a disk image file from outside is, and whether it may be imported.

A disk image can name a second file (a backing file, an external data file, an extent), and a program
that runs as root and follows such a name reads any file of the host into a guest. So a file from outside
is read here, in Python, before qemu-img opens it, and only formats that hold all of their data
themselves are accepted. qemu-img takes whatever has no known format for a raw disk, so a raw disk must
look like one: a boot sector, a partition table, or a file system.

The magics are those of block/vmdk.c, block/vdi.c and block/vhdx.c in QEMU, and of libblkid.
"""

from __future__ import annotations

import os
import struct

from qsysd.errors import InvalidError
from qsysd.images import formats
from qsysd.images.formats import BrokenImageError

FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx")
ACCEPTED = f"accepted: {', '.join(FORMATS)}"
MAKE_WHOLE = "convert it to a single file where it comes from: qemu-img convert -O qcow2"
AS_IT_IS = "to import it as a disk all the same: --format raw"

# Holds the last of the magics below, that of Btrfs.
START = 128 * 1024

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
}
TAR = (257, b"ustar")
ISO_9660 = (0x8001, b"CD001")
# Offset and magic of what a raw disk begins with: a boot sector, GPT (sectors of 512 and 4096 bytes),
# LVM, ext2 to ext4, XFS, Btrfs, F2FS, SquashFS.
RAW = (
    (510, b"\x55\xaa"), (512, b"EFI PART"), (4096, b"EFI PART"), (512, b"LABELONE"), (1080, b"\x53\xef"),
    (0, b"XFSB"), (65600, b"_BHRfS_M"), (1024, b"\x10\x20\xf5\xf2"), (0, b"hsqs"),
)  # fmt: skip


def detect(fd: int, path: str, declared: str | None = None) -> str:
    """Return the format of an open file, as qemu-img names it, when it may be imported.

    path: for the error's words. declared: the format that the caller says it has; `raw` takes any file as
    it is. Raises InvalidError, with what is wrong and what to do.
    """
    start = os.pread(fd, START, 0)
    if not start:
        raise InvalidError(f"{path} is empty")
    if declared == "raw":
        return "raw"
    found = _known(fd, path, start) or _raw(path, start)
    if declared not in (None, found):
        raise InvalidError(f"{path} is of format {found}, not {declared}", hint=f"--format {found}")
    return found


def _known(fd: int, path: str, start: bytes) -> str | None:
    """Return the format that a file's magic names, None for none. Raises InvalidError."""
    for magic, (name, tool) in WRAPPED.items():
        if start.startswith(magic):
            raise InvalidError(f"{path} is packed by {name}", hint=f"unpack it first: {tool} {path}")
    for magic, name in REFUSED.items():
        if start.startswith(magic):
            raise InvalidError(f"{path} is of format {name}", hint=ACCEPTED)
    if start.startswith(formats.QCOW2_MAGIC):
        try:
            formats.check_whole_file(fd, path)
        except BrokenImageError as error:
            hint = None
            if error.backing_file or error.external_data:
                hint = f"{MAKE_WHOLE} {os.path.basename(path)} whole.qcow2"
            raise InvalidError(error.message, hint=hint) from error
        return "qcow2"
    if start.startswith(b"KDMV"):
        return _vmdk(start, path)
    if start.lstrip().startswith(b"# Disk DescriptorFile"):
        raise InvalidError(
            f"{path} is only the description of a vmdk whose data is in other files",
            hint=MAKE_WHOLE,
        )
    if start[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi"
    return "vhdx" if start.startswith(b"vhdxfile") else None


def _vmdk(start: bytes, path: str) -> str:
    """Return `vmdk` when the file is a sparse extent that holds a whole disk.

    A capacity of 0 makes QEMU follow the description inside the file, which can name any other
    file as an extent; a parent's name makes it a difference to another disk. QEMU looks for that name
    behind the header, wherever the header has the description: so it is looked for in all of `start`.
    """
    (capacity,) = struct.unpack("<Q", start[12:20].ljust(8, b"\x00"))
    if capacity == 0 or b"parentFileNameHint" in start:
        raise InvalidError(
            f"{path} is a vmdk whose data is in other files",
            hint=MAKE_WHOLE,
        )
    return "vmdk"


def _raw(path: str, start: bytes) -> str:
    """Return `raw` when the file looks like a disk. Raises InvalidError, with what it is, when not."""

    def has(place: tuple[int, bytes]) -> bool:
        return start.startswith(place[1], place[0])

    # Installers have a boot sector besides, for USB sticks.
    if has(ISO_9660):
        raise InvalidError(
            f"{path} is an ISO 9660 image, a CD or DVD and not a disk",
            hint=f"for Debian without an installer: qsysd image build debian; {AS_IT_IS}",
        )
    if has(TAR):
        raise InvalidError(f"{path} is of format tar", hint=ACCEPTED)
    if any(map(has, RAW)):
        return "raw"
    if _is_text(start[:512]):
        raise InvalidError(f"{path} is a text file", hint=f"{ACCEPTED}; {AS_IT_IS}")
    raise InvalidError(
        f"{path} does not look like a disk: no boot sector, partition table or file system", hint=AS_IT_IS
    )


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a character that the end of `start` cuts
            return False
        text = start[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)

"""The format of a disk image file, and whether it can be imported.

A disk image can refer to another file (a backing file, an external data file, an extent). A program that
runs as root and follows such a reference copies any file of the host into a guest. Therefore a file is
checked here before qemu-img opens it, and only files that contain all of their data are accepted.
qemu-img treats a file without a known magic number as a raw disk; here a raw disk must have a boot sector,
a partition table or a file system.

The magic numbers are those of block/vmdk.c, block/vdi.c and block/vhdx.c in QEMU, and of libblkid.
"""

from __future__ import annotations

import os
import shlex
import struct

from qsysd.errors import InvalidError
from qsysd.images import formats
from qsysd.images.formats import BrokenImageError

FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx")
ACCEPTED = f"accepted: {', '.join(FORMATS)}"
MAKE_WHOLE = "convert it to a single file where it comes from: qemu-img convert -O qcow2"
AS_IT_IS = "to import it as a raw disk: --format raw"

# Long enough for all magic numbers below; the last is that of Btrfs.
START = 128 * 1024

# Compressed files, and the program that decompresses them.
WRAPPED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\xfd7zXZ\x00": ("xz", "xz -d"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"BZh": ("bzip2", "bunzip2"),
    b"PK\x03\x04": ("zip", "unzip"),
}
# Formats that are recognized so that they are not imported as raw disks.
REFUSED = {
    b"LUKS\xba\xbe": "LUKS (encrypted)",
    b"QED\x00": "qed",
    b"conectix": "vpc (VHD)",
    b"COWD": "vmdk of an ESX server",
    b"KDMVCOWD": "vmdk",
}
TAR = (257, b"ustar")
ISO_9660 = (0x8001, b"CD001")
# Offset and magic number of a boot sector, GPT (sectors of 512 and 4096 bytes),
# LVM, ext2 to ext4, XFS, Btrfs, F2FS, SquashFS.
RAW = (
    (510, b"\x55\xaa"), (512, b"EFI PART"), (4096, b"EFI PART"), (512, b"LABELONE"), (1080, b"\x53\xef"),
    (0, b"XFSB"), (65600, b"_BHRfS_M"), (1024, b"\x10\x20\xf5\xf2"), (0, b"hsqs"),
)  # fmt: skip


def detect(fd: int, path: str, declared: str | None = None) -> str:
    """Return the format of an open file that can be imported, as qemu-img names it.

    path: for the error message. declared: the expected format; with `raw` any file is accepted.
    Raise InvalidError.
    """
    start = os.pread(fd, START, 0)
    if not start:
        raise InvalidError(f"{path} is empty")
    if declared == "raw":
        return "raw"
    found = _known(fd, path, start) or _raw(path, start)
    if declared not in (None, found):
        raise InvalidError(f"{path} has format {found}, not {declared}", hint=f"--format {found}")
    return found


def _known(fd: int, path: str, start: bytes) -> str | None:
    """Return the format that the magic number of a file shows, None without one. Raise InvalidError."""
    for magic, (name, tool) in WRAPPED.items():
        if start.startswith(magic):
            raise InvalidError(f"{path} is compressed by {name}", hint=f"{tool} {shlex.quote(path)}")
    for magic, name in REFUSED.items():
        if start.startswith(magic):
            raise InvalidError(f"{path} has format {name}", hint=ACCEPTED)
    if start.startswith(formats.QCOW2_MAGIC):
        try:
            formats.check_whole_file(fd, path)
        except BrokenImageError as error:
            hint = None
            if error.backing_file or error.external_data:
                hint = f"{MAKE_WHOLE} {shlex.quote(os.path.basename(path))} whole.qcow2"
            raise InvalidError(error.message, hint=hint) from error
        return "qcow2"
    if start.startswith(b"KDMV"):
        return _vmdk(start, path)
    if start.lstrip().startswith(b"# Disk DescriptorFile"):
        raise InvalidError(
            f"{path} is the descriptor of a vmdk whose data is in other files",
            hint=MAKE_WHOLE,
        )
    if start[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi"
    return "vhdx" if start.startswith(b"vhdxfile") else None


def _vmdk(start: bytes, path: str) -> str:
    """Return `vmdk` if the file is a sparse extent that contains a whole disk. Raise InvalidError.

    With a capacity of 0, QEMU opens the extents that the embedded descriptor names: any file. With the name
    of a parent, the file contains only differences. QEMU searches for that name behind the header, wherever
    the header places the descriptor; therefore all of `start` is searched.
    """
    (capacity,) = struct.unpack("<Q", start[12:20].ljust(8, b"\x00"))
    if capacity == 0 or b"parentFileNameHint" in start:
        raise InvalidError(
            f"{path} is a vmdk whose data is in other files",
            hint=MAKE_WHOLE,
        )
    return "vmdk"


def _raw(path: str, start: bytes) -> str:
    """Return `raw` if the file contains a disk. Raise InvalidError."""

    def has(place: tuple[int, bytes]) -> bool:
        return start.startswith(place[1], place[0])

    # Before RAW: ISO images of installers also have a boot sector, for USB sticks.
    if has(ISO_9660):
        raise InvalidError(
            f"{path} is an ISO 9660 image of a CD or DVD, not of a disk",
            hint=f"for Debian without an installer: qsysd image build debian; {AS_IT_IS}",
        )
    if has(TAR):
        raise InvalidError(f"{path} has format tar", hint=ACCEPTED)
    if any(map(has, RAW)):
        return "raw"
    if _is_text(start[:512]):
        raise InvalidError(f"{path} is a text file", hint=f"{ACCEPTED}; {AS_IT_IS}")
    raise InvalidError(
        f"{path} is not a disk: it has no boot sector, partition table or file system", hint=AS_IT_IS
    )


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a character is cut at the end of `start`
            return False
        text = start[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)

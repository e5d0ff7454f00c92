"""Convert a disk image file to a qcow2 file that depends on no other file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

from qsysd import process
from qsysd.errors import InvalidError, QsysdError, TimeoutExpired
from qsysd.images import detect, foreign
from qsysd.images.progress import Progress, Ticker
from qsysd.runtime import spawn
from qsysd.values import printable

CHUNK = 4 * 1024 * 1024
MIB = 1024 * 1024

# Blocks of zeros of this size are not copied: bytes.
BLOCK = 64 * 1024
ZEROS = bytes(BLOCK)

# Formats that can refer to other files. A copy that only root can write is checked and opened, not the file
# itself: its owner could change it between the check and the use.
COPIED = ("qcow2", "vmdk")

# Limits for qemu-img: a crafted file can make it build tables without end.
MEMORY_MAX = 2 * 1024**3  # bytes
MINIMUM_TIME = 600.0  # seconds
BYTES_PER_SECOND = 4 * MIB


def import_disk(source: str, target: str, progress: Progress, declared: str | None = None) -> None:
    """Create the qcow2 file `target` from the disk image `source`; both paths are absolute.

    declared: the format of the source, None to detect it. The source is opened only once.
    Raise InvalidError if the source is not a disk image or refers to other files, QsysdError with
    qemu-img's error message if it cannot be read or the disk is full.
    """
    descriptor = foreign.open_file(source)
    try:
        kind = detect.detect(descriptor, source, declared)
        status = os.fstat(descriptor)
        progress(f"importing {source} ({kind}, {status.st_size // MIB} MiB)")
        limit = MINIMUM_TIME + status.st_blocks * 512 / BYTES_PER_SECOND
        if kind in COPIED:
            _import_copy(descriptor, source, kind, target, limit, progress)
        else:
            place = f"/proc/self/fd/{descriptor}"
            arguments = ["-f", kind, "-O", "qcow2", place, target]
            convert(arguments, progress, limit=limit, descriptor=descriptor)
    finally:
        os.close(descriptor)


def _import_copy(
    descriptor: int, source: str, kind: str, target: str, limit: float, progress: Progress
) -> None:
    """Create `target` from a copy of an open file, which is checked before qemu-img opens it."""
    copy = f"{target}.{kind}"
    _copy(descriptor, source, copy, progress)
    own = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if detect.detect(own, source) != kind:
            raise InvalidError(f"{source} changed while it was copied")
    finally:
        os.close(own)
    _check(copy, kind, source, limit)
    status = os.stat(copy)
    if kind == "qcow2" and status.st_blocks * 512 * 2 > status.st_size:
        os.rename(copy, target)
        return
    # A qcow2 file that consists mostly of holes (preallocation=metadata) is converted, to omit them.
    convert(["-f", kind, "-O", "qcow2", copy, target], progress, limit=limit)
    os.unlink(copy)


def _copy(descriptor: int, source: str, target: str, progress: Progress) -> None:
    """Copy an open file to a new one, without its holes and blocks of zeros, and report progress."""
    ticker = Ticker(progress)
    size = os.fstat(descriptor).st_size
    position = 0
    try:
        with open(target, "xb", buffering=0) as writer:
            writer.truncate(size)
            while (position := _next_data(descriptor, position)) < size:
                chunk = os.pread(descriptor, CHUNK, position)
                if not chunk:
                    break  # the file was truncated meanwhile
                _write_sparse(writer.fileno(), chunk, position)
                position += len(chunk)
                ticker.tick(f"copied {position // MIB} of {size // MIB} MiB")
    except OSError as error:
        raise QsysdError(f"cannot copy {source}: {error.strerror}") from error


def _next_data(descriptor: int, position: int) -> int:
    """Return the offset of the next data of a file from `position` on; the end of the file without any."""
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError:  # ENXIO, lseek(2)
        return os.fstat(descriptor).st_size


def _write_sparse(descriptor: int, chunk: bytes, position: int) -> None:
    """Write the blocks of a chunk except those of zeros."""
    view = memoryview(chunk)
    start = 0  # the first block that is not written yet
    for offset in range(0, len(chunk), BLOCK):
        if view[offset : offset + BLOCK] == ZEROS[: len(chunk) - offset]:
            _write(descriptor, view[start:offset], position + start)
            start = offset + BLOCK
    _write(descriptor, view[start:], position + start)


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written


def _check(path: str, kind: str, source: str, limit: float) -> None:
    """Check with qemu-img that a file refers to no other file and is not corrupt. Raise InvalidError."""
    info = json.loads(_qemu_img(["info", "-f", kind, "--output=json", path], source, limit))
    details = info.get("format-specific", {}).get("data", {})
    others = [info.get("backing-filename"), info.get("full-backing-filename"), details.get("data-file")]
    others += [extent.get("filename") for extent in details.get("extents", [])]
    foreign_files = [other for other in others if other and other != path]
    if foreign_files or info.get("encrypted"):
        what = f"refers to another file, {printable(foreign_files[0])}" if foreign_files else "is encrypted"
        raise InvalidError(f"{source} {what}")
    if kind == "qcow2":
        # Leaked clusters only waste space (status 3); other errors would reach the guest.
        _qemu_img(["check", "-q", "-f", kind, path], source, limit, accepted=(0, 3))


def _limited(arguments: Sequence[str]) -> list[str]:
    """Return the command line of qemu-img with limited memory. prlimit(1) is in util-linux."""
    return ["prlimit", f"--data={MEMORY_MAX}", "--", spawn.require("qemu-img"), *arguments]


def _qemu_img(arguments: Sequence[str], source: str, limit: float, accepted: Sequence[int] = (0,)) -> str:
    """Run qemu-img on a file; return its output. Raise InvalidError with a message about `source`."""
    command = ["setpriv", "--pdeathsig", "KILL", "--", *_limited(arguments)]
    try:
        done = spawn.run(command, check=False, timeout=limit)
    except TimeoutExpired as error:
        raise _too_slow(source, limit) from error
    if done.returncode not in accepted:
        reason = spawn.last_words(done.stderr) or spawn.last_words(done.stdout)
        reason = printable(reason) or f"exit status {done.returncode}"
        raise InvalidError(f"{source} is not a valid image: {reason}")
    return done.stdout


def _too_slow(what: str, limit: float) -> TimeoutExpired:
    return TimeoutExpired(
        f"{what}: qemu-img did not end within {limit / 60:.0f} min",
        hint="convert it first: qemu-img convert -O qcow2",
    )


def convert(
    arguments: Sequence[str], progress: Progress, *, limit: float | None = None, descriptor: int | None = None
) -> None:
    """Run `qemu-img convert` and report progress. Raise QsysdError with its error message.

    limit: seconds for a file whose contents are not trusted; its memory is limited then as well.
    descriptor: an open file that the arguments name by its number.
    """
    errors: list[str] = []
    percent = "0"
    program = ["convert", "-p", *arguments]
    command = ["qemu-img", *program] if limit is None else _limited(program)
    with process.Follower(command, keep=() if descriptor is None else (descriptor,)) as child:
        ticker = Ticker(progress)
        for line in child:
            if line is not None and "/100%)" in line:
                percent = line.strip(" ()").split("/")[0]
            elif line:
                errors.append(line)
            if limit is not None and ticker.elapsed() > limit:
                raise _too_slow(arguments[-1], limit)
            ticker.tick(f"converting: {percent}%, {ticker.elapsed():.0f} s")
    if child.returncode:
        reason = printable(spawn.last_words("\n".join(errors))) or f"exit status {child.returncode}"
        raise QsysdError(f"cannot convert the image: {reason}")


def digest(path: str, progress: Progress) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    total = os.stat(path).st_size
    ticker = Ticker(progress)
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
            ticker.tick(f"digest: {file.tell() * 100 // total}%")
    return state.hexdigest()

"""Bring a disk image file from outside in as a qcow2 file of our own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence

from qsysd import process
from qsysd.errors import InvalidError, QsysdError, TimeoutExpired
from qsysd.images import detect, foreign
from qsysd.runtime import spawn

Progress = Callable[[str], None]

# Say something at least this often while something takes long: seconds.
TICK = 3.0
CHUNK = 4 * 1024 * 1024
MIB = 1024 * 1024

# A copy leaves out blocks of zeros of this size: bytes.
BLOCK = 64 * 1024
ZEROS = bytes(BLOCK)

# Formats that could refer to other files. A copy that only we can write is looked at and opened,
# not the file itself: its owner could change it between the look and the use.
COPIED = ("qcow2", "vmdk")

# What qemu-img may take for a file from outside. A crafted one can have it build tables without end.
MEMORY_MAX = 2 * 1024**3  # bytes
TIME_LEAST = 600.0  # seconds
BYTES_PER_SECOND = 4 * MIB


def import_disk(source: str, target: str, progress: Progress, declared: str | None = None) -> None:
    """Make the qcow2 file `target` from the disk image `source`; both paths absolute.

    declared: the source's format, None to detect it. The source is opened once, and read through that.
    Raises InvalidError when the source is not a disk image that stands alone, QsysdError, with
    qemu-img's own words, when it cannot be read or the disk is full.
    """
    descriptor = foreign.open_file(source)
    try:
        kind = detect.detect(descriptor, source, declared)
        status = os.fstat(descriptor)
        progress(f"importing {source} ({kind}, {status.st_size // MIB} MiB)")
        limit = TIME_LEAST + status.st_blocks * 512 / BYTES_PER_SECOND
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
    # A qcow2 file that is mostly holes (preallocation=metadata) is written anew, without them.
    convert(["-f", kind, "-O", "qcow2", copy, target], progress, limit=limit)
    os.unlink(copy)


def _copy(descriptor: int, source: str, target: str, progress: Progress) -> None:
    """Copy an open file to a new one, without its holes and blocks of zeros, reporting progress."""
    last = time.monotonic()
    size = os.fstat(descriptor).st_size
    position = 0
    try:
        with open(target, "xb", buffering=0) as writer:
            writer.truncate(size)
            while (position := _next_data(descriptor, position)) < size:
                chunk = os.pread(descriptor, CHUNK, position)
                if not chunk:
                    break  # it has become shorter
                _write_sparse(writer.fileno(), chunk, position)
                position += len(chunk)
                if time.monotonic() - last > TICK:
                    last = time.monotonic()
                    progress(f"copied {position // MIB} of {size // MIB} MiB")
    except OSError as error:
        raise QsysdError(f"cannot copy {source}: {error.strerror}") from error


def _next_data(descriptor: int, position: int) -> int:
    """Return where the next data of a file begins, at `position` or behind it; its end if none follows."""
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError:  # ENXIO, lseek(2)
        return os.fstat(descriptor).st_size


def _write_sparse(descriptor: int, chunk: bytes, position: int) -> None:
    """Write all blocks of a chunk but those of zeros."""
    view = memoryview(chunk)
    start = 0  # of blocks that are not written yet
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
    """Let qemu-img look at a file that is ours: nothing it refers to, and nothing corrupt in it."""
    info = json.loads(_qemu_img(["info", "-f", kind, "--output=json", path], source, limit))
    details = info.get("format-specific", {}).get("data", {})
    others = [info.get("backing-filename"), info.get("full-backing-filename"), details.get("data-file")]
    others += [extent.get("filename") for extent in details.get("extents", [])]
    foreign_files = [other for other in others if other and other != path]
    if foreign_files or info.get("encrypted"):
        what = f"refers to another file, {foreign_files[0]}" if foreign_files else "is encrypted"
        raise InvalidError(f"{source} {what}")
    if kind == "qcow2":
        # Leaked clusters only waste space; errors in the tables are what a guest would read.
        _qemu_img(["check", "-q", "-f", kind, path], source, limit, accepted=(0, 3))


def _limited(arguments: Sequence[str]) -> list[str]:
    """Return the command line of a qemu-img with a limit of memory. prlimit(1) is of util-linux."""
    return ["prlimit", f"--data={MEMORY_MAX}", "--", spawn.require("qemu-img"), *arguments]


def _qemu_img(arguments: Sequence[str], source: str, limit: float, accepted: Sequence[int] = (0,)) -> str:
    """Run qemu-img on a file; return what it printed. Raises InvalidError in words about `source`."""
    command = ["setpriv", "--pdeathsig", "KILL", "--", *_limited(arguments)]
    try:
        done = spawn.run(command, check=False, timeout=limit)
    except TimeoutExpired as error:
        raise _too_slow(source, limit) from error
    if done.returncode not in accepted:
        words = spawn.last_words(done.stderr) or spawn.last_words(done.stdout)
        raise InvalidError(f"{source} is not a sound image: {words or f'exit status {done.returncode}'}")
    return done.stdout


def _too_slow(what: str, limit: float) -> TimeoutExpired:
    return TimeoutExpired(
        f"{what}: qemu-img did not end within {limit / 60:.0f} min", hint="try it by hand: qemu-img convert"
    )


def convert(
    arguments: Sequence[str], progress: Progress, *, limit: float | None = None, descriptor: int | None = None
) -> None:
    """Run `qemu-img convert` with progress. Raises QsysdError with its own words when it fails.

    limit: for a file from outside, the seconds that it may take; its memory is limited then as well.
    descriptor: an open file that the arguments name by its number.
    """
    words: list[str] = []
    program = ["convert", "-p", *arguments]
    command = ["qemu-img", *program] if limit is None else _limited(program)
    with process.Follower(command, keep=() if descriptor is None else (descriptor,)) as child:
        started = said = time.monotonic()
        done = ""
        for line in child:
            if line is not None and "/100%)" in line:
                done = line.strip(" ()").split("/")[0]
            elif line:
                words.append(line)
            if limit is not None and time.monotonic() - started > limit:
                raise _too_slow(arguments[-1], limit)
            if time.monotonic() - said >= TICK:
                said = time.monotonic()
                progress(f"converting: {done or '0'}%, {said - started:.0f} s")
    if child.returncode:
        reason = spawn.last_words("\n".join(words)) or f"exit status {child.returncode}"
        raise QsysdError(f"cannot convert the image: {reason}")


def digest(path: str, progress: Progress) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    import hashlib

    total = os.stat(path).st_size
    last = time.monotonic()
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
            if time.monotonic() - last > TICK:
                last = time.monotonic()
                progress(f"digest: {file.tell() * 100 // total}%")
    return state.hexdigest()

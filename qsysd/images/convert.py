"""Bring a disk image file from outside in as a qcow2 file of our own."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Sequence

from qsysd import process
from qsysd.errors import InvalidError, NotFoundError, QsysdError
from qsysd.images import formats

Progress = Callable[[str], None]

# Say something at least this often while something takes long: seconds.
TICK = 3.0
CHUNK = 4 * 1024 * 1024
MIB = 1024 * 1024

# Formats that could refer to other files. A copy that only we can write is looked at and opened,
# not the file itself: its owner could swap it between the look and the use.
COPIED = ("qcow2", "vmdk")


def import_disk(source: str, target: str, progress: Progress) -> None:
    """Make the qcow2 file `target` from the disk image `source`; both paths absolute.

    Raises NotFoundError, InvalidError when the source is not a disk image that stands alone,
    QsysdError, with qemu-img's own words, when it cannot be read or the disk is full.
    """
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidError(f"{source} is not a file")
        kind = formats.detect(source)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {source}") from error
    except OSError as error:
        raise QsysdError(f"cannot read {source}: {error.strerror}") from error
    progress(f"importing {source} ({kind}, {status.st_size // MIB} MiB)")
    if kind in COPIED:
        copy = target if kind == "qcow2" else f"{target}.{kind}"
        _copy(source, copy, status.st_size, progress)
        if formats.detect(copy) != kind:
            raise InvalidError(f"{source} changed while it was copied")
        _check(copy, kind, source)
        if kind == "qcow2":
            return
        source = copy
    convert(["-f", kind, "-O", "qcow2", source, target], progress)


def _copy(source: str, target: str, size: int, progress: Progress) -> None:
    """Copy a file, with the file system's help where it has any, saying how far it is."""
    last = time.monotonic()
    try:
        with open(source, "rb") as reader, open(target, "wb") as writer:
            while chunk := reader.read(CHUNK):
                writer.write(chunk)
                if time.monotonic() - last > TICK:
                    last = time.monotonic()
                    progress(f"copied {writer.tell() // MIB} of {size // MIB} MiB")
    except OSError as error:
        raise QsysdError(f"cannot copy {source}: {error.strerror}") from error


def _check(path: str, kind: str, source: str) -> None:
    """Let qemu-img look at a file that is ours: nothing it refers to, and nothing corrupt in it."""
    info = json.loads(_qemu_img(["info", "-f", kind, "--output=json", path], source))
    details = info.get("format-specific", {}).get("data", {})
    others = [info.get("backing-filename"), info.get("full-backing-filename"), details.get("data-file")]
    others += [extent.get("filename") for extent in details.get("extents", [])]
    foreign = [other for other in others if other and other != path]
    if foreign or info.get("encrypted"):
        what = f"refers to another file, {foreign[0]}" if foreign else "is encrypted"
        raise InvalidError(f"{source} {what}")
    if kind == "qcow2":
        # Leaked clusters only waste space; errors in the tables are what a guest would read.
        _qemu_img(["check", "-q", "-f", kind, path], source, accepted=(0, 3))


def _qemu_img(arguments: Sequence[str], source: str, accepted: Sequence[int] = (0,)) -> str:
    """Run qemu-img on a file; return what it printed. Raises InvalidError in words about `source`."""
    done = process.run(["qemu-img", *arguments], check=False)
    if done.returncode not in accepted:
        words = process.last_words(done.stderr) or process.last_words(done.stdout)
        raise InvalidError(f"{source} is not a sound image: {words}")
    return done.stdout


def convert(arguments: Sequence[str], progress: Progress) -> None:
    """Run `qemu-img convert` with progress. Raises QsysdError with its own words when it fails."""
    words: list[str] = []
    with process.Follower(["qemu-img", "convert", "-p", *arguments]) as child:
        started = said = time.monotonic()
        done = ""
        for line in child:
            if line is not None and "/100%)" in line:
                done = line.strip(" ()").split("/")[0]
            elif line:
                words.append(line)
            if time.monotonic() - said >= TICK:
                said = time.monotonic()
                progress(f"converting: {done or '0'}%, {said - started:.0f} s")
    if child.returncode:
        reason = process.last_words("\n".join(words)) or f"exit status {child.returncode}"
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

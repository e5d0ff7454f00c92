"""Files: atomic writes, reads, removals, and their durability.

A file is written under another name, synced and renamed, so that a power cut leaves the old or the new
one. A rename, a new name or a removal is durable when its directory is synced (fsync(2)).
"""

from __future__ import annotations

import errno
import os
import stat

from qsysd.errors import RUN_AS_ROOT, QsysdError

# The directories to sync at the end of `SyncedTogether`; None outside it.
_changed: dict[str, None] | None = None


def write_atomic(path: str, content: str | bytes, mode: int, *, staging: str = "") -> None:
    """Write a file so that a crash leaves the old or the new one. Raise QsysdError.

    staging: the path under which it is written first; the default is PATH.part. No link is followed: the
    directory may be writable by a VM's QEMU.
    """
    staging = staging or f"{path}.part"
    data = content.encode() if isinstance(content, str) else content
    try:
        _unlink(staging)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(staging, flags, mode)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(staging, path)
        except BaseException:
            os.unlink(staging)
            raise
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str, error: OSError) -> QsysdError:
    """Return the error for a file that cannot be written, with a hint."""
    return QsysdError(f"{path} cannot be written: {error.strerror}", hint=hint(error))


def hint(error: OSError) -> str | None:
    """Return the hint for a failed system call, or None."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space and try again"
    if error.errno in (errno.EACCES, errno.EPERM):
        return RUN_AS_ROOT
    return None


def read_text(path: str, *, errors: str = "strict") -> str | None:
    """Return a file's text, or None if it does not exist. Raise QsysdError if it cannot be read.

    errors: the treatment of bytes that are not UTF-8, as in bytes.decode().
    """
    try:
        return _read(path).decode("utf-8", errors)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise QsysdError(f"{path} cannot be read: it is not UTF-8 text") from error
    except OSError as error:
        raise QsysdError(f"{path} cannot be read: {error.strerror}", hint=hint(error)) from error


def read_bytes(path: str) -> bytes | None:
    """Return a file's bytes, or None if it does not exist or cannot be read."""
    try:
        return _read(path)
    except OSError:
        return None


def _read(path: str) -> bytes:
    """Return the bytes of a regular file; a FIFO without a writer does not block. Raise OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        parts = []
        while part := os.read(descriptor, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def remove(path: str) -> bool:
    """Remove a file; return whether it existed."""
    existed = _unlink(path)
    # A killed command may have removed it without syncing the directory.
    if existed or _changed is not None:
        sync_directory(os.path.dirname(path))
    return existed


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def sync_file(path: str) -> None:
    """Sync a file that another program wrote. Raise QsysdError."""
    try:
        _sync(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise cannot_write(path, error) from error


def make_directory(path: str, mode: int) -> None:
    """Create a directory and those above it durably, unless they exist. Raise QsysdError."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    if above:
        make_directory(above, 0o755)
    try:
        os.mkdir(path, mode)
        sync_directory(above)
    except OSError as error:
        raise cannot_write(path, error) from error


def sync_directory(path: str) -> None:
    """Sync the entries of a directory: at once, or at the end of `SyncedTogether`."""
    path = path or "."
    if _changed is not None:
        _changed[path] = None
    else:
        _sync(path)


def _sync(path: str, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SyncedTogether:
    """Sync each directory that changes in the block once, at its end, also after an error.

    The removal of a directory is durable with the entries of the one above it.
    """

    def __init__(self) -> None:
        self._outermost = False

    def __enter__(self) -> None:
        global _changed
        if _changed is None:
            self._outermost, _changed = True, {}

    def __exit__(self, *_error: object) -> None:
        global _changed
        if not self._outermost:
            return
        changed, _changed = _changed or {}, None
        for path in changed:
            try:
                _sync(path)
            except (FileNotFoundError, NotADirectoryError):
                continue

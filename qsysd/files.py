"""Files: atomic writes, plain reads, and what makes them durable.

A file is written beside its place, synced, and renamed over it, so that a power cut leaves the old
or the new one. A rename, a new name or a removal is durable once its directory is synced (fsync(2)).
"""

from __future__ import annotations

import errno
import os
import stat

from qsysd.errors import QsysdError

# Read by type checkers only: importing typing takes longer than the rest of this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_sha256: Any = None

# The directories to sync at the end of `SyncedTogether`; None outside of it.
_changed: dict[str, None] | None = None


def write_atomic(path: str, content: str | bytes, mode: int, *, partial: str = "") -> None:
    """Write a file so that a crash leaves the old or the new one. Raises QsysdError.

    partial: the name under which it is written first; without it PATH.part. No link is followed: the
    directory may be writable by a VM's QEMU.
    """
    partial = partial or f"{path}.part"
    data = content.encode() if isinstance(content, str) else content
    try:
        _unlink(partial)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(partial, flags, mode)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
        sync_directory(os.path.dirname(path))
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str, error: OSError) -> QsysdError:
    """Return the error for a file that cannot be written, with what to do."""
    return QsysdError(f"{path} cannot be written: {error.strerror}", hint=hint(error))


def hint(error: OSError) -> str | None:
    """Return what to do about a failed system call, or None."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space and try again"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "run it as root: sudo qsysd …"
    return None


def read_text(path: str, *, errors: str = "strict") -> str | None:
    """Return a file's text, or None if it does not exist. Raises QsysdError if it cannot be read.

    errors: what becomes of bytes that are not UTF-8, as in bytes.decode().
    """
    try:
        # A FIFO without a writer would block here.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise QsysdError(f"{path} cannot be read: not a regular file")
            return _read_all(descriptor).decode("utf-8", errors)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise QsysdError(f"{path} cannot be read: it is not UTF-8 text") from error
    except OSError as error:
        raise QsysdError(f"{path} cannot be read: {error.strerror}", hint=hint(error)) from error


def read_bytes(path: str) -> bytes | None:
    """Return a file's bytes, or None if it does not exist or cannot be read."""
    try:
        # A FIFO without a writer would block here.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read_all(descriptor) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def digest(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of some bytes."""
    global _sha256
    _sha256 = _sha256 or _import_sha256()
    return str(_sha256(data).hexdigest())[:16]


def _import_sha256() -> Any:
    # hashlib loads OpenSSL, 2.4 ms; the interpreter's own module, 0.05 ms, has another name in each version.
    for module in ("_sha2", "_sha256", "hashlib"):
        try:
            return __import__(module).sha256
        except ImportError:
            continue
    raise ImportError("no module has SHA-256")


def _read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def remove(path: str) -> bool:
    """Remove a file; return whether it existed."""
    existed = _unlink(path)
    # If it did not exist, a killed command may have removed it without syncing the directory.
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
    """Make the contents of a file durable that another program has written. Raises QsysdError."""
    try:
        _sync(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise cannot_write(path, error) from error


def make_directory(path: str, mode: int) -> None:
    """Create a directory, and those above it, durably; one that exists stays. Raises QsysdError."""
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
    """Make the entries of a directory durable: at once, or at the end of `SyncedTogether`."""
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
    """Sync each directory that changes inside once, at the end, even after an error.

    A directory that has been removed by then is durable with its parent's entries.
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

"""Locks of VMs, images and the host: flock(2) on files that are never removed.

The kernel releases a lock when its holder exits.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from qsysd.errors import QsysdError, TimeoutExpired
from qsysd.files import hint
from qsysd.host.context import Host
from qsysd.paths import Scope

LOCK_TIMEOUT = 600.0  # seconds; more than a stop takes
REPORT_AFTER = 2.0  # seconds of waiting until it is reported
_POLL = 0.01


def _open_lock(scope: Scope, name: str) -> int:
    try:
        os.makedirs(scope.locks_dir, mode=0o700, exist_ok=True)
        return os.open(scope.lock(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        place = scope.locks_dir if isinstance(error, PermissionError) else scope.lock(name)
        raise QsysdError(
            f"{place}: {error.strerror}", hint=hint(error) or f"mv {place} {place}.damaged"
        ) from error


def _try_lock(descriptor: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def of_image(name: str) -> str:
    """Return the name of an image's lock."""
    return f"image:{name}"


@contextmanager
def locked(host: Host, names: Iterable[str], *, exclusive: bool = True) -> Iterator[None]:
    """Hold the locks of some names.

    Changes on disk need exclusive locks. Starting, stopping and similar verbs use shared locks, so that
    `kill` can proceed while a `stop` waits. Locks are always taken in the same order, to avoid deadlocks:
    SETUP, VMs, images, ADDRESSES.
    Raise TimeoutExpired.
    """
    by_file = {host.scope.lock(name): name for name in names}
    with ExitStack() as held:
        for path in sorted(by_file):
            descriptor = _open_lock(host.scope, by_file[path])
            held.callback(os.close, descriptor)
            _wait_for_lock(host, descriptor, by_file[path], exclusive)
        yield


@contextmanager
def lock_if_free(host: Host, name: str) -> Iterator[bool]:
    """Take the exclusive lock of a name if it is free; yield whether it was taken."""
    descriptor = _open_lock(host.scope, name)
    try:
        yield _try_lock(descriptor, exclusive=True)
    finally:
        os.close(descriptor)


def _wait_for_lock(host: Host, descriptor: int, name: str, exclusive: bool) -> None:
    started = time.monotonic()
    reported = False
    subject = name.lstrip(":").replace(":", " ")  # web1, image debian, setup, addresses
    while not _try_lock(descriptor, exclusive):
        waited = time.monotonic() - started
        if waited > LOCK_TIMEOUT:
            raise TimeoutExpired(
                f"{subject}: another qsysd command has been running for {LOCK_TIMEOUT / 60:.0f} min",
                hint="to find it: ps -C qsysd",
            )
        if waited > REPORT_AFTER and not reported:
            host.progress(f"{subject}: waiting for another qsysd command to end")
            reported = True
        time.sleep(_POLL)

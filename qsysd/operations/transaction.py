"""All or nothing: locks, durable notes of intent, and recovery of what a killed command left.

A command that makes or removes a VM writes a note of intent before its first side effect and removes
it after the last. A note whose command is dead means that the VM is half there, and the next command
that changes something, or the next host boot, removes that half whole. Locks are flock(2) on files
that are never unlinked, so a lock dies with its holder and there is nothing to clean.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from qsysd.errors import QsysdError, TimeoutExpired
from qsysd.files import cannot_write, read_text, remove, sync_directory
from qsysd.operations.host import Host
from qsysd.paths import Scope

LOCK_TIMEOUT = 600.0  # seconds; longer than any stop takes
TELL_AFTER = 2.0  # seconds of waiting after which the person is told what for
_POLL = 0.01


class Intent(NamedTuple):
    """A create or delete that did not end: its command is dead, or still at work."""

    vm: str
    verb: str


def _open_lock(scope: Scope, name: str) -> int:
    try:
        os.makedirs(scope.locks_dir, mode=0o700, exist_ok=True)
        return os.open(scope.lock(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise QsysdError(
            f"{scope.locks_dir}: {error.strerror}", hint="run it as root: sudo qsysd …"
        ) from error


def _try_lock(descriptor: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(host: Host, names: Iterable[str], *, exclusive: bool = True) -> Iterator[None]:
    """Hold the locks of some names.

    Changing what is on disk takes them exclusively; starting, stopping and the like share them, so
    that `kill` gets through while a `stop` waits. All are taken in one order, so no two commands
    wait for each other; who takes locks inside others goes from SETUP to VMs, images and ADDRESSES.
    Raises TimeoutExpired.
    """
    by_file = {host.scope.lock(name): name for name in names}
    with ExitStack() as held:
        for path in sorted(by_file):
            descriptor = _open_lock(host.scope, by_file[path])
            held.callback(os.close, descriptor)
            _wait_for_lock(host, descriptor, by_file[path], exclusive)
        yield


def _wait_for_lock(host: Host, descriptor: int, name: str, exclusive: bool) -> None:
    started = time.monotonic()
    told = False
    while not _try_lock(descriptor, exclusive):
        waited = time.monotonic() - started
        if waited > LOCK_TIMEOUT:
            raise TimeoutExpired(
                f"{name}: another qsysd command has been at work for {LOCK_TIMEOUT / 60:.0f} min",
                hint="see what it waits for: ps -C qsysd",
            )
        if waited > TELL_AFTER and not told:
            host.tell(f"{name}: waiting for another qsysd command to end")
            told = True
        time.sleep(_POLL)


def pending(scope: Scope) -> list[Intent]:
    """Return the intents on disk. Those of commands that are at work now are among them."""
    found = []
    with suppress(FileNotFoundError):
        for entry in sorted(os.listdir(scope.intents_dir)):
            if entry.endswith(".json"):
                found.append(Intent(entry.removesuffix(".json"), _verb(scope, entry)))
    return found


def _verb(scope: Scope, entry: str) -> str:
    import json

    try:
        return str(json.loads(read_text(os.path.join(scope.intents_dir, entry)) or "")["verb"])
    except (ValueError, KeyError, TypeError):
        return "create"


def begin(host: Host, vm: str, verb: str) -> None:
    """Write the note of intent, durably. The VM's exclusive lock must be held. Raises QsysdError."""
    import json

    path = host.scope.intent(vm)
    try:
        # In place: a note that is cut off is one as well.
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps({"verb": verb, "pid": os.getpid()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(host.scope.intents_dir)
    except OSError as error:
        with suppress(OSError):
            remove(path)
        raise cannot_write(path, error) from error


def end(host: Host, vm: str) -> None:
    """Remove the note, durably: the VM is whole, or gone.

    A note that a power cut brought back would have the next host boot remove a whole VM.
    """
    remove(host.scope.intent(vm))


@contextmanager
def intent(host: Host, vm: str, verb: str, undo: Callable[[], None]) -> Iterator[None]:
    """Do something all or nothing; the VM's exclusive lock must be held.

    An error or Ctrl-C inside runs `undo` and goes on up; a kill leaves the note for `recover`.
    """
    begin(host, vm, verb)
    try:
        yield
    except BaseException:
        try:
            undo()
        except (QsysdError, OSError) as error:
            # The note stays, so that the next command finishes it; the first error is the one to see.
            host.tell(f"{vm}: what was made could not be removed yet: {error}")
        else:
            end(host, vm)
        raise
    end(host, vm)


def recover(host: Host, finish: Callable[[str], None]) -> list[Intent]:
    """Bring what killed commands left to an end, by `finish(vm)`; return what there was.

    A VM whose lock is held belongs to a command that is still at work, and is left to it; one that
    cannot be finished now keeps its note for the next command.
    """
    done = []
    for found in pending(host.scope):
        descriptor = _open_lock(host.scope, found.vm)
        try:
            # Once the lock is ours, the note may be gone: its command has just ended well.
            if _try_lock(descriptor, exclusive=True) and os.path.exists(host.scope.intent(found.vm)):
                try:
                    finish(found.vm)
                except (QsysdError, OSError) as error:
                    # What cannot be finished yet must not be in the way of every other VM.
                    host.tell(f"{found.vm}: a {found.verb} was killed; what it left stays for now: {error}")
                    continue
                end(host, found.vm)
                done.append(found)
        finally:
            os.close(descriptor)
    return done

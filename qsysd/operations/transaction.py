"""All or nothing: locks, and durable intents.

A command that changes what is on disk writes an intent before its first side effect and removes it
after the last. An intent whose command is dead means that the change is incomplete: module `recovery`
repairs it, with the next changing command or at host boot. Locks are flock(2) on files that are never
unlinked, so a lock dies with its holder and needs no cleaning up.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from qsysd.errors import QsysdError, TimeoutExpired
from qsysd.files import SyncedTogether, cannot_write, hint, read_text, remove, sync_directory
from qsysd.operations.host import Host
from qsysd.paths import Scope, is_name

LOCK_TIMEOUT = 600.0  # seconds; longer than any stop takes
TELL_AFTER = 2.0  # seconds of waiting after which the person is told what for
_POLL = 0.01


class Intent(NamedTuple):
    """A change that did not end: its command was killed, or is still at work.

    kind: of what is changed, `vm`. All three are in the name of the file `path`; its contents are for
    people only.
    """

    kind: str
    name: str
    verb: str
    path: str


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


@contextmanager
def lock_if_free(host: Host, name: str) -> Iterator[bool]:
    """Hold the exclusive lock of a name unless another command does; yield whether it is held."""
    descriptor = _open_lock(host.scope, name)
    try:
        yield _try_lock(descriptor, exclusive=True)
    finally:
        os.close(descriptor)


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
    """Return the intents on disk, those of commands that are at work now included."""
    return [found for found in map(_parse, _entries(scope)) if found]


def unrecognized(scope: Scope) -> list[str]:
    """Return the paths among the intents that are none: directories, names of another form."""
    if os.path.lexists(scope.intents_dir) and not os.path.isdir(scope.intents_dir):
        return [scope.intents_dir]
    return [path for path in _entries(scope) if not _parse(path) and os.path.lexists(path)]


def _entries(scope: Scope) -> list[str]:
    try:
        return [os.path.join(scope.intents_dir, entry) for entry in sorted(os.listdir(scope.intents_dir))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise QsysdError(f"{scope.intents_dir} cannot be read: {error.strerror}", hint=hint(error)) from error


def _parse(path: str) -> Intent | None:
    """Return the intent that a file is: `KIND.NAME.VERB.json`, or the older form `NAME.json`."""
    words = os.path.basename(path).removesuffix(".json").split(".")
    if not path.endswith(".json") or not all(map(is_name, words)) or not _is_file(path):
        return None
    if len(words) == 3:
        kind, name, verb = words
        return Intent(kind, name, verb, path)
    return Intent("vm", words[0], _verb_inside(path), path) if len(words) == 1 else None


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _verb_inside(path: str) -> str:
    """Return the verb in an intent of the older form. One that was cut off is a create."""
    import json

    try:
        verb = str(json.loads(read_text(path) or "")["verb"])
    except (QsysdError, ValueError, LookupError, TypeError, RecursionError):
        return "create"
    return verb if is_name(verb) else "create"


def begin(host: Host, vm: str, verb: str) -> Intent:
    """Write an intent, durably. The VM's exclusive lock must be held. Raises QsysdError."""
    path = host.scope.intent(vm, verb)
    try:
        _make_way(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            # The name says all; this is for people.
            file.write(f'{{"pid": {os.getpid()}, "time": {time.time():.0f}}}\n')
            file.flush()
            os.fsync(file.fileno())
        sync_directory(host.scope.intents_dir)
    except OSError as error:
        with suppress(OSError):
            remove(path)
        raise cannot_write(path, error) from error
    return Intent("vm", vm, verb, path)


def _make_way(path: str) -> None:
    """Move aside what is not a file; `doctor` reports it under its new name."""
    if os.path.lexists(path) and not _is_file(path):
        number = next(number for number in itertools.count(1) if not os.path.lexists(f"{path}.{number}"))
        os.rename(path, f"{path}.{number}")


def end(intent: Intent) -> None:
    """Remove an intent, durably: its change is complete, or undone.

    One that a power cut brought back would have the next host boot repair what is whole.
    """
    remove(intent.path)


@contextmanager
def intent(host: Host, vm: str, verb: str, undo: Callable[[], None]) -> Iterator[None]:
    """Change a VM all or nothing; the VM's exclusive lock must be held.

    An error or Ctrl-C inside runs `undo` and is raised again; a kill leaves the intent for `recovery`.
    All directories that were changed through module `files` are durable before the intent is removed.
    """
    begun = begin(host, vm, verb)
    try:
        with SyncedTogether():
            yield
    except BaseException:
        try:
            with SyncedTogether():
                undo()
        except Exception as error:
            # The intent stays, so that the next command repeats the undo; the first error is raised.
            host.tell(f"{vm}: the failed {verb} could not be undone yet: {error}")
        else:
            end(begun)
        raise
    end(begun)

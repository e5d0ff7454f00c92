"""Durable intents, for changes that are all or nothing.

A command writes an intent before its first change and removes it after the last. If an intent exists
whose command does not run, the change is incomplete: module `recovery` completes or undoes it with the
next changing command or at host boot.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from qsysd.errors import QsysdError
from qsysd.files import SyncedTogether, cannot_write, hint, read_text, remove, sync_directory
from qsysd.host.context import Host
from qsysd.paths import Scope, is_name


@dataclass(frozen=True)
class Intent:
    """An incomplete change: its command was killed, or is still running.

    kind: of the changed object, `vm`. kind, name and verb are in the file name of `path`; the contents of
    the file are informative only.
    """

    kind: str
    name: str
    verb: str
    path: str


def pending(scope: Scope) -> list[Intent]:
    """Return the intents on disk, including those of running commands."""
    return [found for found in map(_parse, _entries(scope)) if found]


def unrecognized(scope: Scope) -> list[str]:
    """Return the paths in the directory of intents that are not intents."""
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
    """Return the intent of a file `KIND.NAME.VERB.json`, or of the older form `NAME.json`; else None."""
    parts = os.path.basename(path).removesuffix(".json").split(".")
    if not path.endswith(".json") or not all(map(is_name, parts)) or not _is_file(path):
        return None
    if len(parts) == 3:
        kind, name, verb = parts
        return Intent(kind, name, verb, path)
    return Intent("vm", parts[0], _verb_inside(path), path) if len(parts) == 1 else None


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _verb_inside(path: str) -> str:
    """Return the verb in an intent of the older form; `create` if it is truncated."""
    import json

    try:
        verb = str(json.loads(read_text(path) or "")["verb"])
    except (QsysdError, ValueError, LookupError, TypeError, RecursionError):
        return "create"
    return verb if is_name(verb) else "create"


def begin(host: Host, vm: str, verb: str) -> Intent:
    """Write an intent, durably. The VM's exclusive lock must be held. Raise QsysdError."""
    path = host.scope.intent(vm, verb)
    try:
        _make_way(path)
        # Not write_atomic: a staging file that a killed command left would not be an intent. The name of the
        # file is sufficient; the contents are informative only.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
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
    """Rename what is not a file; `doctor` reports it under its new name."""
    if os.path.lexists(path) and not _is_file(path):
        number = next(number for number in itertools.count(1) if not os.path.lexists(f"{path}.{number}"))
        os.rename(path, f"{path}.{number}")


def end(intent: Intent) -> None:
    """Remove an intent, durably: its change is complete, or undone.

    If it reappeared after a power cut, the next host boot would remove a complete VM.
    """
    remove(intent.path)


@contextmanager
def intent(host: Host, vm: str, verb: str, undo: Callable[[], None]) -> Iterator[None]:
    """Change a VM all or nothing; the VM's exclusive lock must be held.

    After an error or Ctrl-C, `undo` is called and the error is raised again. After a kill the intent
    remains for `recovery`. Directories that were changed by module `files` are synced before the intent is
    removed.
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
            # The intent is kept, so that the next command repeats the undo. The first error is raised.
            host.progress(f"{vm}: the failed {verb} could not be undone: {error}")
        else:
            end(begun)
        raise
    end(begun)

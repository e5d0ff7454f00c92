"""All or nothing: durable intents.

A command that changes what is on disk writes an intent before its first side effect and removes it
after the last. An intent whose command is dead means that the change is incomplete: module `recovery`
repairs it, with the next changing command or at host boot.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from qsysd.errors import QsysdError
from qsysd.files import SyncedTogether, cannot_write, hint, read_text, remove, sync_directory
from qsysd.host.context import Host
from qsysd.paths import Scope, is_name


class Intent(NamedTuple):
    """A change that did not end: its command was killed, or is still at work.

    kind: of what is changed, `vm`. All three are in the name of the file `path`; its contents are for
    people only.
    """

    kind: str
    name: str
    verb: str
    path: str


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
            host.progress(f"{vm}: the failed {verb} could not be undone yet: {error}")
        else:
            end(begun)
        raise
    end(begun)

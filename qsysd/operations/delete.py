"""delete: delete VMs with their disks."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from qsysd.errors import QsysdError
from qsysd.files import SyncedTogether
from qsysd.host import intents, locks, selection, unit_states
from qsysd.host.changes import changing
from qsysd.host.context import Host
from qsysd.host.recovery import is_known
from qsysd.host.removal import files, remove_all
from qsysd.names import natural_key
from qsysd.runtime import trees
from qsysd.values import printable

LISTED_MAX = 100  # files of a VM's directory that are listed; its QEMU can create millions


class Kind(StrEnum):
    """The kind of a path."""

    FILE = "file"
    DIRECTORY = "directory"
    NOT_A_DIRECTORY = "not_a_directory"


@dataclass(frozen=True)
class Item:
    """A path that is removed. A directory is removed with everything in it.

    path: printable. kind: NOT_A_DIRECTORY where a VM's directory is expected. size: bytes that a file takes
    on this host; None for a directory, and for a file that vanished.
    """

    path: str
    kind: Kind
    size: int | None = None


@dataclass(frozen=True)
class Contents:
    """The contents of a VM, which a delete removes. items: its paths; more: how many are not listed.

    running: whether the VM is switched off first. definition, directory: their paths; defined: whether the
    definition exists. needed_by: the VMs that depend on it and are not deleted.
    """

    name: str
    unit: str
    running: bool
    definition: str
    defined: bool
    directory: str
    items: list[Item]
    more: int
    needed_by: list[str]


@dataclass(frozen=True)
class Deleted:
    """The result of a delete. contents: of a dry run only.

    kept: drop-ins that are not qsysd's. failed: the errors by VM.
    """

    contents: list[Contents] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, QsysdError] = field(default_factory=dict)


def delete(host: Host, names: Sequence[str] | None, *, dry_run: bool = False) -> Deleted:
    """Delete VMs with their disks. If one cannot be deleted, the others are.

    dry_run: whether only to return what would be removed. Raise, before anything is removed, NotFoundError
    when one of the VMs does not exist, and StateError while something is mounted in the directory of one.
    """
    host.require_root()
    if dry_run:
        return Deleted(contents=_contents(host, selection.resolve(host, names)))
    killed = _killed(host)
    with changing(host, names) as vms:
        # Recovery has already removed a VM whose create or delete was killed.
        left = [name for name in vms if name not in killed or unit_states.has_traces(host, name)]
        _check(host, left)
        kept = [path for name in left for path in _foreign_drop_ins(host, name)]
        failed = _delete(host, left)
    deleted = [name for name in vms if name not in failed]
    return Deleted(
        deleted=deleted, kept=kept, failed={name: _as_error(name, error) for name, error in failed.items()}
    )


def _killed(host: Host) -> set[str]:
    """Return the VMs whose change was killed, without those that a running command changes."""
    found = set()
    for intent in intents.pending(host.scope):
        with locks.lock_if_free(host, intent.name) as free:
            # A command that has just ended has removed its intent before it released the lock.
            if free and os.path.lexists(intent.path):
                found.add(intent.name)
    return found


def _check(host: Host, names: Sequence[str]) -> None:
    for name in names:
        unit_states.require_traces(host, name)
        trees.refuse_mounts(host.scope.vm_dir(name))


def _delete(host: Host, names: Sequence[str]) -> dict[str, Exception]:
    """Delete VMs whose locks are held; return the errors by VM."""
    for name in names:
        # A delete that fails is not undone: the intent is kept, and the next command completes it.
        try:
            intents.begin(host, name, "delete")
        except QsysdError as error:
            # The disk may be full. A delete frees space, and can be repeated if it is killed.
            host.progress(f"warning: {error.message}")
    with SyncedTogether():
        failed = remove_all(host, names)
    for intent in intents.pending(host.scope):
        if intent.name in names and intent.name not in failed and is_known(intent):
            intents.end(intent)
    return failed


def _as_error(name: str, error: Exception) -> QsysdError:
    message = error.message if isinstance(error, QsysdError) else f"{type(error).__name__}: {error}"
    hint = getattr(error, "hint", None) or f"fix it, and run again: qsysd delete {name}"
    return QsysdError(f"{name} was not deleted: {message}", hint=hint)


def _foreign_drop_ins(host: Host, vm: str) -> list[str]:
    """Return the drop-ins of a VM that are not qsysd's, or what exists in place of their directory."""
    directory = host.scope.drop_in_dir(vm)
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return [directory] if os.path.lexists(directory) else []
    ours = os.path.basename(host.scope.drop_in(vm))
    return [os.path.join(directory, name) for name in names if name not in (ours, f"{ours}.part")]


# contents


def _contents(host: Host, names: Sequence[str]) -> list[Contents]:
    _check(host, names)
    states = unit_states.states(host, names)
    needed_by: dict[str, list[str]] = {name: [] for name in names}
    for other in host.store.names():
        if other not in needed_by:
            for name in host.store.depends_on(other):
                needed_by.get(name, []).append(other)
    return [
        Contents(
            name=name,
            unit=states[name].name,
            running=states[name].active not in unit_states.OFF,
            definition=host.scope.definition(name),
            defined=host.store.exists(name),
            directory=host.scope.vm_dir(name),
            items=items,
            more=more,
            needed_by=needed_by[name],
        )
        for name in names
        for items, more in [_items(host, name)]
    ]


def _items(host: Host, vm: str) -> tuple[list[Item], int]:
    """Return the paths of a VM that are removed, rendered files excepted, and how many are not listed."""
    directory = host.scope.vm_dir(vm)
    found = [Item(path, Kind.DIRECTORY) for path in files(host, vm) if _is_directory(path)]
    if _is_directory(directory):
        # Sockets are removed with QEMU.
        entries = [entry for entry in os.scandir(directory) if not _is_socket(entry)]
        entries.sort(key=lambda entry: natural_key(entry.name))
        found += map(_item, entries[:LISTED_MAX])
        return found, max(0, len(entries) - LISTED_MAX)
    if os.path.lexists(directory):
        found.append(Item(directory, Kind.NOT_A_DIRECTORY))
    return found, 0


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _is_socket(entry: os.DirEntry[str]) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    return True


def _item(entry: os.DirEntry[str]) -> Item:
    path = printable(entry.path)
    try:
        if entry.is_dir(follow_symlinks=False):
            return Item(path, Kind.DIRECTORY)
        return Item(path, Kind.FILE, entry.stat(follow_symlinks=False).st_blocks * 512)
    except FileNotFoundError:
        return Item(path, Kind.FILE)

"""Delete VMs with their disks."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from qsysd import paths
from qsysd.errors import QsysdError
from qsysd.files import SyncedTogether
from qsysd.host import intents
from qsysd.host.changes import changing
from qsysd.host.context import Host
from qsysd.host.recovery import is_known
from qsysd.host.removal import files, remove_all
from qsysd.host.unit_states import require_traces
from qsysd.names import natural_key
from qsysd.runtime import trees
from qsysd.values import human_size, printable

LISTED_MAX = 100  # files of a VM's directory that are named; its QEMU can create millions

_DIRECTORY = "a directory, with everything in it"


def contents(host: Host, vm: str) -> list[str]:
    """Return what deleting a VM will remove, for people to read before they agree.

    Raises NotFoundError, and StateError while something is mounted in the VM's directory.
    """
    require_traces(host, vm)
    trees.refuse_mounts(host.scope.vm_dir(vm))
    state = host.systemd.state(paths.unit(vm))
    scope = host.scope
    found = []
    if state.active not in ("inactive", "failed"):
        found.append(f"{state.name} runs: it is switched off, without a shutdown of the guest")
    if host.store.exists(vm):
        found.append(f"{scope.definition(vm)} and what was rendered from it")
    else:
        found.append(f"what was rendered from {scope.definition(vm)}, which does not exist")
    found += [f"{path} ({_DIRECTORY})" for path in files(host, vm) if _is_directory(path)]
    if _is_directory(scope.vm_dir(vm)):
        # Sockets end with QEMU.
        entries = [entry for entry in os.scandir(scope.vm_dir(vm)) if not _is_socket(entry)]
        entries.sort(key=lambda entry: natural_key(entry.name))
        found += [f"{printable(entry.path)} ({_used(entry)})" for entry in entries[:LISTED_MAX]]
        if len(entries) > LISTED_MAX:
            found.append(f"{scope.vm_dir(vm)}: {len(entries) - LISTED_MAX} more files and directories")
    elif os.path.lexists(scope.vm_dir(vm)):
        found.append(f"{scope.vm_dir(vm)} (not a directory)")
    return found


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _is_socket(entry: os.DirEntry[str]) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    return True


def _used(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir(follow_symlinks=False):
            return _DIRECTORY
        return human_size(entry.stat(follow_symlinks=False).st_blocks * 512)
    except FileNotFoundError:
        return "gone"


def foreign_drop_ins(host: Host, vm: str) -> list[str]:
    """Return a person's own drop-ins of a VM, which stay, or what is in the place of their directory."""
    directory = host.scope.drop_in_dir(vm)
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return [directory] if os.path.lexists(directory) else []
    ours = os.path.basename(host.scope.drop_in(vm))
    return [os.path.join(directory, name) for name in names if name not in (ours, f"{ours}.part")]


class Deleted(NamedTuple):
    """What a delete came to. kept: a person's own drop-ins. failed: what prevented it, by VM."""

    kept: list[str]
    failed: dict[str, QsysdError]


def delete(host: Host, names: Sequence[str] | None) -> Deleted:
    """Delete VMs with their disks. One that cannot be deleted keeps no other from it.

    Raises, before anything is touched, NotFoundError when one of them does not exist and StateError
    while something is mounted in the directory of one.
    """
    with changing(host, names) as vms:
        for name in vms:
            require_traces(host, name)
            trees.refuse_mounts(host.scope.vm_dir(name))
        kept = [path for name in vms for path in foreign_drop_ins(host, name)]
        for name in vms:
            # A delete that fails is not undone: the intent stays, and the next command completes it.
            try:
                intents.begin(host, name, "delete")
            except QsysdError as error:
                # A full disk: to delete is the way out of it, and can be repeated if it is killed.
                host.progress(f"warning: {error.message}")
        with SyncedTogether():
            failed = remove_all(host, vms)
        for intent in intents.pending(host.scope):
            if intent.name in vms and intent.name not in failed and is_known(intent):
                intents.end(intent)
    return Deleted(kept, {name: _as_error(name, error) for name, error in failed.items()})


def _as_error(name: str, error: Exception) -> QsysdError:
    words = error.message if isinstance(error, QsysdError) else f"{type(error).__name__}: {error}"
    hint = getattr(error, "hint", None) or f"fix it, and run it again: qsysd delete {name}"
    return QsysdError(f"{name} was not deleted: {words}", hint=hint)

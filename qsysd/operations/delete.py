"""Remove a VM, whole: also what undoes a failed create and finishes a killed delete."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from qsysd import network, paths, roots, taps, trees
from qsysd.errors import QsysdError
from qsysd.files import remove
from qsysd.operations import transaction
from qsysd.operations.control import power_off, reload_dhcp
from qsysd.operations.host import Host
from qsysd.values import human_size, printable


def contents(host: Host, vm: str) -> list[str]:
    """Return what deleting a VM will remove, for people to read before they agree.

    Raises NotFoundError, and StateError while something is mounted in the VM's directory.
    """
    host.store.require(vm)
    trees.refuse_mounts(host.scope.vm_dir(vm))
    state = host.systemd.state(paths.unit(vm))
    scope = host.scope
    found = []
    if state.active not in ("inactive", "failed"):
        found.append(f"{state.name} runs: it is switched off, without a shutdown of the guest")
    found.append(f"{scope.definition(vm)} and what was rendered from it")
    if os.path.isdir(scope.vm_dir(vm)):
        for entry in sorted(os.scandir(scope.vm_dir(vm)), key=lambda item: item.name):
            found.append(f"{printable(entry.path)} ({_used(entry)})")
    return found


def _used(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir(follow_symlinks=False):
            return "a directory, with everything in it"
        return human_size(entry.stat(follow_symlinks=False).st_blocks * 512)
    except FileNotFoundError:
        return "gone"


def foreign_drop_ins(host: Host, vm: str) -> list[str]:
    """Return a person's own drop-ins of a VM, which stay."""
    directory = host.scope.drop_in_dir(vm)
    with suppress(FileNotFoundError):
        return [
            os.path.join(directory, name)
            for name in sorted(os.listdir(directory))
            if name != os.path.basename(host.scope.drop_in(vm))
        ]
    return []


def delete(host: Host, names: Sequence[str]) -> list[str]:
    """Delete VMs with their disks; return the paths of a person's own drop-ins, which stay.

    Raises, before anything is touched, NotFoundError when one of them does not exist and StateError
    while something is mounted in the directory of one.
    """
    host.require_root()
    recover(host)
    with transaction.locked(host, names):
        for name in names:
            host.store.require(name)
            trees.refuse_mounts(host.scope.vm_dir(name))
        kept = [path for name in names for path in foreign_drop_ins(host, name)]
        for name in names:
            # A delete that fails half-way is not put together again: the note stays, and the next
            # command goes on with it.
            try:
                transaction.begin(host, name, "delete")
            except QsysdError as error:
                # A full disk: to delete is the way out of it, and can be repeated if it is killed.
                host.tell(f"warning: {error.message}")
        remove_everything(host, names)
        for name in names:
            transaction.end(host, name)
    return kept


def remove_everything(host: Host, names: Sequence[str]) -> None:
    """Remove all that belongs to VMs, whatever part of it exists. Raises StateError as `delete`."""
    scope = host.scope
    for name in names:
        trees.refuse_mounts(scope.vm_dir(name))
    units = [paths.unit(name) for name in names]
    host.systemd.disable(units)
    power_off(host, names)
    reload: set[str] = set()
    for name in names:
        reload |= _forget_addresses(host, name)
        _remove_taps(name)
        for path in (scope.note(name), scope.known_hosts(name)):
            remove(path)
        trees.remove(scope.vm_dir(name))
        trees.remove(scope.seed_scratch(name))
        root = scope.root_dir(name)
        if os.path.exists(root) and not roots.remove(root):
            host.tell(f"warning: {root} holds files or mounts that are not qsysd's; they were left in place")
        host.store.remove(name)
    for unit in units:
        host.systemd.reset_failed(unit)
    host.systemd.refresh(units)
    for name in sorted(reload):
        reload_dhcp(host, name)


def _remove_taps(vm: str) -> None:
    """Remove TAPs that a unit left: its last step was killed, or never ran."""
    left = [
        found[1]
        for alias in taps.existing_taps().values()
        if (found := taps.parse_alias(alias)) and found[0] == vm
    ]
    taps.unplug(left)


def _forget_addresses(host: Host, vm: str) -> set[str]:
    """Take a VM's host entries and leases out of its networks; return those networks."""
    found: set[str] = set()
    for name in host.store.network_names():
        entries = network.hosts(host.scope, name, vm)
        if entries:
            found.add(name)
            running = host.systemd.state(paths.dhcp_unit(name)).active == "active"
        for mac, address in entries:
            try:
                network.release(host.scope, name, address, mac, running=running)
            except QsysdError as error:
                # For example without its bridge; nobody gets the address until the lease runs out.
                host.tell(f"warning: {vm}: the lease of {address} stays: {error.message}")
        network.remove_host(host.scope, name, vm)
    return found


def recover(host: Host) -> None:
    """Bring to an end what killed commands left; every changing command begins with it."""
    if not os.path.isdir(host.scope.intents_dir):
        return
    recovered = transaction.recover(host, lambda vm: remove_everything(host, [vm]))
    for found in recovered:
        host.tell(f"{found.vm}: a {found.verb} was killed; what it left has been removed")
    if recovered:
        # The killed command may have taken its entries away and not told dnsmasq.
        for name in host.store.network_names():
            reload_dhcp(host, name)
    host.images.clean_partials()

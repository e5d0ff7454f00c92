"""Remove everything that belongs to VMs: for delete, after a failed create, and for recovery.

It does not depend on the contents of a VM's files, which may be missing, damaged, or directories.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from qsysd import network, paths
from qsysd.errors import HostError, QsysdError, TimeoutExpired
from qsysd.files import remove, sync_directory
from qsysd.host.context import Host
from qsysd.host.unit_jobs import power_off, reload_dhcp, sync_links
from qsysd.runtime import roots, taps, trees
from qsysd.runtime.ports import is_mac, parse_alias


def remove_everything(host: Host, name: str) -> None:
    """Remove everything that exists of a VM. Raise the error that prevents it."""
    for error in remove_all(host, [name]).values():
        raise error


def remove_all(host: Host, names: Sequence[str]) -> dict[str, Exception]:
    """Remove everything that exists of VMs; return the errors by VM. An error does not affect other VMs."""
    failed = _with_mounts(host, names)
    names = [name for name in names if name not in failed]
    units = [paths.unit(name) for name in names]
    _disable(host, units)
    failed |= _power_off(host, names)
    reload: set[str] = set()
    for name in names:
        if name in failed:
            continue
        try:
            reload |= _forget_addresses(host, name)
            # The last step of the unit may have been killed, or did not run.
            taps.unplug(host.scope, [], name)
            _remove_files(host, name)
        except Exception as error:  # no error of one VM may prevent the removal of others
            failed[name] = error
    for unit in units:
        host.systemd.reset_failed(unit)
    host.systemd.refresh(units)
    for name in sorted(reload):
        reload_dhcp(host, name)
    return failed


def _with_mounts(host: Host, names: Sequence[str]) -> dict[str, Exception]:
    """Return the VMs that cannot be removed because of a mount in their directory."""
    failed: dict[str, Exception] = {}
    for name in names:
        try:
            trees.refuse_mounts(host.scope.vm_dir(name))
        except QsysdError as error:
            failed[name] = error
    return failed


def _disable(host: Host, units: Sequence[str]) -> None:
    """Remove the links that start units at host boot."""
    try:
        host.systemd.disable(units)
    except (HostError, TimeoutExpired):
        raise  # without systemd nothing is removed
    except QsysdError as error:
        # For example, the unit template does not exist.
        host.progress(f"warning: {error.message}; the links in {host.scope.wants_dir} are removed directly")
    for unit in units:
        _remove(os.path.join(host.scope.wants_dir, unit))
    sync_links(host)


def _power_off(host: Host, names: Sequence[str]) -> dict[str, Exception]:
    """Switch VMs off; return the errors by VM."""
    with suppress(QsysdError):
        power_off(host, names)
        return {}
    failed: dict[str, Exception] = {}
    for name in names:
        try:
            power_off(host, [name])
        except QsysdError as error:
            failed[name] = error
    return failed


def _remove_files(host: Host, name: str) -> None:
    """Remove a VM's files, the definition last: until then the VM can be deleted again."""
    scope = host.scope
    rendered = (scope.drop_in(name), scope.environment(name), scope.definition(name))
    for path in rendered:
        _remove(f"{path}.part")  # of a write that was killed
    for path in (
        scope.started_record(name),
        scope.known_hosts(name),
        scope.vm_dir(name),
        scope.seed_scratch(name),
    ):
        _remove(path)
    # systemd removes it, unless the unit template does not exist.
    _remove(scope.runtime(name))
    root = scope.root_dir(name)
    if not roots.remove(root):
        host.progress(f"warning: {root} contains files or mounts that are not qsysd's; they were kept")
    for path in rendered:
        _remove(path)
    with suppress(OSError):  # it contains drop-ins of the administrator, or is a link
        os.rmdir(scope.drop_in_dir(name))
        sync_directory(scope.unit_dir)


def files(host: Host, name: str) -> Iterator[str]:
    """Yield the paths of a VM's files outside its directory; not all of them need exist."""
    scope = host.scope
    yield from (scope.definition(name), scope.environment(name), scope.drop_in(name))
    yield from (scope.started_record(name), scope.known_hosts(name))
    yield from (scope.dhcp_host(network_name, name) for network_name in host.store.network_names())


def _remove(path: str) -> None:
    """Remove a file or a directory tree."""
    if os.path.isdir(path) and not os.path.islink(path):
        trees.remove(path)
        sync_directory(os.path.dirname(path))
    else:
        try:
            remove(path)
        except OSError as error:
            # Its parent is not a directory, so it does not exist.
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise


def _forget_addresses(host: Host, vm: str) -> set[str]:
    """Remove a VM's host entries and leases from its networks; return those networks."""
    found: set[str] = set()
    for name in host.store.network_names():
        path = host.scope.dhcp_host(name, vm)
        if os.path.lexists(path):
            found.add(name)
            try:
                _release_all(host, name, vm)
            except QsysdError as error:
                # For example, the bridge does not exist; the address stays unused until the lease expires.
                host.progress(f"warning: {vm}: its leases on network {name} were kept: {error.message}")
            _remove(path)
        network.remove_host(host.scope, name, vm)
    return found


def _plugged(*, but: str) -> set[str]:
    """Return the MACs of the NICs that have a TAP, except those of one VM."""
    known = map(parse_alias, taps.existing_taps().values())
    return {port.mac for vm, port in filter(None, known) if vm != but}


def _release_all(host: Host, name: str, vm: str) -> None:
    """End a VM's leases on a network, and those of NICs that were removed from definitions."""
    # If the definition was copied, the lease also belongs to the other VM.
    others = set(os.listdir(host.scope.dhcp_hosts_dir(name))) - {vm}
    shared = {entry for other in others for entry in network.hosts(host.scope, name, other)}
    # A NIC that was removed from a definition has its TAP and uses its address until its VM is restarted.
    used = {mac for mac, _ in shared} | _plugged(but=vm)
    unused = {
        (lease.mac, lease.address)
        for lease in network.leases(host.scope, name)
        if is_mac(lease.mac) and lease.mac not in used
    }
    running = host.systemd.state(paths.dhcp_unit(name)).active == "active"
    for mac, address in (unused | set(network.hosts(host.scope, name, vm))) - shared:
        network.release(host.scope, name, address, mac, running=running)

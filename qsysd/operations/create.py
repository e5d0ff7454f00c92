"""Make a VM: all of it, or nothing."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from qsysd import config, files, network, paths, render, values
from qsysd.errors import ExistsError, InvalidError, NotFoundError, QsysdError, StateError
from qsysd.operations import control, divergence, image, listing, qemu, rendering, transaction
from qsysd.operations.host import Host
from qsysd.operations.recovery import recover
from qsysd.operations.removal import remove_everything
from qsysd.spec import Defaults, Disk, NetworkSpec, Nic, VMSpec
from qsysd.store import Claims


def create(
    host: Host,
    text: str,
    source: str,
    *,
    start: bool = True,
    enable: bool = True,
    ssh_keys: Sequence[str] = (),
) -> VMSpec:
    """Make a VM from a definition in YAML and return its spec; `uuid`, `mac` and the like are filled in.

    source: the file's name for messages, empty for a command line. ssh_keys: public keys that the
    guest's user gets beside those of the definition. Raises InvalidError, ExistsError, NotFoundError
    before anything was made, and any other error after what was made has been removed again.
    """
    host.require_ready()
    recover(host)
    defaults = host.store.defaults()
    spec = config.parse_vm(text, source, defaults=defaults)
    image_lock = [f"image:{spec.image}"] if spec.image else []
    with transaction.locked(host, [spec.name]), transaction.locked(host, image_lock, exclusive=False):
        _check_free(host, spec.name)
        with ExitStack() as undo:
            # No two VMs choose an address at once; it is taken when it stands in a definition.
            with transaction.locked(host, [paths.ADDRESSES]):
                others = host.store.claims(but=spec.name)
                spec = complete(host, spec, defaults, others, ssh_keys)
                _check(host, spec, others)
                undo.enter_context(
                    transaction.intent(host, spec.name, "create", lambda: remove_everything(host, spec.name))
                )
                host.store.write_definition(spec)
            _make(host, spec)
            if enable:
                host.systemd.enable([paths.unit(spec.name)])
                control.sync_links(host)
            if start:
                _start(host, spec)
    return spec


def ensure_image(host: Host, text: str, source: str) -> None:
    """Make sure that the image which a definition names is there: one that has a recipe is built.

    That takes minutes, so it is not begun for a VM that could not be made. Raises InvalidError,
    ExistsError, NotFoundError.
    """
    host.require_ready()
    spec = config.parse_vm(text, source, defaults=host.store.defaults())
    if not spec.image or host.images.exists(spec.image):
        return
    recover(host)
    _check_free(host, spec.name)
    check_references(host, spec, host.store.claims(but=spec.name))
    image.ensure(host, spec.image)


def require_network(host: Host, text: str, source: str) -> None:
    """Raise InvalidError for a definition without a NIC: SSH could not be waited for."""
    if not config.parse_vm(text, source, defaults=host.store.defaults()).nics:
        raise InvalidError(
            "--wait needs a VM with a network", hint="leave out --wait, and use: qsysd console NAME"
        )


def _check_free(host: Host, name: str) -> None:
    """Raise ExistsError where the name is taken, and HostError without systemd: nothing is begun then."""
    host.systemd.state(paths.unit(name))
    if host.store.exists(name):
        definition = host.scope.definition(name)
        if not os.path.lexists(host.scope.vm_dir(name)):
            raise ExistsError(
                f"{definition} exists, but no VM was created from it",
                hint=f"mv {definition} to another directory, then: qsysd create --file FILE",
            )
        raise ExistsError(
            f"there is already a VM {name!r}", hint=f"qsysd status {name}, or take another name"
        )
    for path in (host.scope.vm_dir(name), host.scope.environment(name), host.scope.drop_in(name)):
        if os.path.lexists(path):
            raise ExistsError(
                f"{path} exists, though there is no VM {name!r}",
                hint=f"remove what is left of a VM: qsysd delete {name}",
            )


def complete(
    host: Host, spec: VMSpec, defaults: Defaults, others: Sequence[Claims], ssh_keys: Sequence[str] = ()
) -> VMSpec:
    """Return the spec with what is made once and kept: UUID, machine type, MACs, addresses, disk size."""
    base = host.images.get(spec.image) if spec.image else None
    disks = spec.disks
    if base and not disks:
        disks = (Disk(max(defaults.disk_size, base.virtual_size)),)
    user, seeded = spec.user, spec.seed
    if base:
        user = user or base.default_user
        seeded = spec.seed and base.cloud_init
    return replace(
        spec,
        uuid=spec.uuid or str(uuid.uuid4()),
        machine=pinned(host, spec.machine or "q35"),
        image_digest=(base.sha256 or None) if base else None,
        disks=disks,
        nics=complete_nics(host, spec, others),
        seed=seeded,
        user=user,
        ssh_keys=tuple(dict.fromkeys([*spec.ssh_keys, *(ssh_keys if seeded else ())])),
    )


def pinned(host: Host, machine: str) -> str:
    """Return a machine type that stays what it is when QEMU is upgraded."""
    return machine if "-" in machine else qemu.pinned_machine(host.scope, machine)


def complete_nics(host: Host, spec: VMSpec, others: Sequence[Claims]) -> tuple[Nic, ...]:
    """Return a VM's NICs, each with a MAC and, where its network gives them, an address of its own."""
    known_nics = [*spec.nics, *(nic for other in others for nic in other.nics)]
    taken = {(nic.network, nic.address) for nic in known_nics if nic.address}
    macs = {nic.mac for nic in known_nics}
    result = []
    for nic in spec.nics:
        mac = nic.mac
        while not mac or (not nic.mac and mac in macs):
            mac = values.new_mac()
        macs.add(mac)
        address = nic.address
        if address is None:
            subnet = host.store.load_network(nic.network).subnet
            claimed = [known for name, known in taken if name == nic.network and known]
            # dnsmasq gives nobody an address that another MAC still holds
            leased = [lease.address for lease in network.leases(host.scope, nic.network)]
            address = network.allocate(subnet, [*claimed, *leased])
            taken.add((nic.network, address))
        result.append(Nic(nic.network, mac, address))
    return tuple(result)


def _check(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise what makes a VM impossible before anything is made; tell what is only odd."""
    check_references(host, spec, others)
    for name in {nic.network for nic in spec.nics}:
        net = host.store.load_network(name)
        if not divergence.has_subnet(host, net):
            raise StateError(
                f"network {name}: the subnet of its definition, {net.subnet}, is not in effect",
                hint="qsysd setup",
            )
    if spec.image:
        host.images.check(spec.image)
        default_user = host.images.get(spec.image).default_user
        if default_user and spec.user != default_user:
            host.tell(
                f"warning: the user {spec.user} is not created in the guest, it is only the login of "
                f"qsysd ssh; the SSH keys are for {default_user}"
            )
    _check_interfaces(spec, others)
    _warn_of_memory(host, spec, others)


def _warn_of_memory(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Warn when the VMs that run or start at host boot have more memory together than this host."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    units = host.systemd.not_off(paths.UNIT_PATTERN)
    running = {paths.vm_of_unit(name) for name, state in units.items() if state.active != "failed"}
    counted = running | listing.enabled_names(host)
    memory_mib = spec.memory_mib + sum(other.memory_mib for other in others if other.name in counted)
    if memory_mib * 1024**2 > total:
        host.tell(
            f"warning: with {spec.name}, the running and enabled VMs have "
            f"{values.human_size(memory_mib * 1024**2)} of memory, more than this host's "
            f"{values.human_size(total)}"
        )


def check_references(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise where a definition names what is not there, or what another VM has already."""
    for other in spec.depends_on:
        if not host.store.exists(other):
            raise NotFoundError(
                f"{spec.name} depends on {other!r}, and there is no such VM", hint="qsysd list"
            )
    for path in [spec.kernel.path, spec.kernel.initrd] if spec.kernel else []:
        if path and not os.path.isfile(path):
            raise InvalidError(
                f"there is no file {path}", hint="kernel and initrd are absolute paths of files"
            )
        if path and not os.stat(path).st_mode & 0o004:
            raise InvalidError(f"{path} cannot be read by the VM's own user", hint=f"chmod o+r {path}")
    _check_order(spec, others)
    check_unique(host, spec, others)


def check_unique(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise where another VM has the UUID, a MAC or an address, or an address is not for a VM."""
    _check_identity(host, spec, others)
    _check_addresses(host, spec, others)


def _check_order(spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise where VMs would wait for each other: systemd would start one of them not at all."""
    needs = {vm.name: vm.depends_on for vm in others}
    ways: list[tuple[str, ...]] = [(spec.name, need) for need in spec.depends_on]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        if way[-1] == spec.name:
            raise InvalidError(f"{spec.name} would wait for itself: {' → '.join(way)}")
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [(*way, need) for need in needs.get(way[-1], ())]


def _check_identity(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise where another VM has the same UUID, or a NIC with the same MAC on the same network."""
    nics = {(nic.network, nic.mac) for nic in spec.nics if nic.mac}
    for other in others:
        if spec.uuid == other.uuid != "":
            hint = "leave it out to get a new one"
            if host.store.exists(spec.name):
                hint = f"if {spec.name} is a copy: {divergence.move_definition(host, spec.name)}"
            raise ExistsError(f"the UUID {spec.uuid} belongs to the VM {other.name!r}", hint=hint)
        for nic in other.nics:
            if (nic.network, nic.mac) in nics:
                raise ExistsError(
                    f"{nic.mac} belongs to the VM {other.name!r}", hint="leave the MAC out to get a new one"
                )


def _check_addresses(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise where an address is not for a VM on its network, or another VM's."""
    claimed = {(nic.network, nic.address): other.name for other in others for nic in other.nics}
    for nic in spec.nics:
        net: NetworkSpec = host.store.load_network(nic.network)
        if nic.address is None:
            continue
        if not network.is_for_a_vm(nic.address, net.subnet):
            raise InvalidError(
                f"{nic.address} is not an address for a VM on network {net.name}, which has {net.subnet}"
            )
        if (owner := claimed.get((nic.network, nic.address))) is not None:
            raise ExistsError(
                f"{nic.address} belongs to the VM {owner!r}", hint="leave the address out to get a free one"
            )


def _check_interfaces(spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise where a TAP's name, which is a digest for a long VM name, is another VM's."""
    mine = paths.tap(spec.name, 0)
    for other in others:
        if paths.tap(other.name, 0) == mine:
            raise ExistsError(
                f"the TAPs of {spec.name!r} would have the names of {other.name!r}'s",
                hint="take another name",
            )


def _make(host: Host, spec: VMSpec) -> None:
    scope = host.scope
    os.mkdir(scope.vm_dir(spec.name), 0o700)
    files.sync_directory(scope.vms_dir)
    if spec.image:
        host.images.create_overlay(spec.image, scope.overlay(spec.name), spec.disks[0].size)
    for index, disk in enumerate(spec.disks):
        if index or not spec.image:
            if disk.size is None:
                raise InvalidError(f"disk {index} of {spec.name} needs a size")
            host.images.create_disk(scope.overlay(spec.name, index), disk.size)
        os.chmod(scope.overlay(spec.name, index), 0o600)
        files.sync_file(scope.overlay(spec.name, index))
    rendering.write(host, spec, render.vm(spec, scope))
    files.sync_directory(scope.vm_dir(spec.name))


def _start(host: Host, spec: VMSpec) -> None:
    needed_by = control.dependencies(host, [spec.name])
    # Without the locks of the dependencies: two creates could wait for each other.
    outcomes = control.start_units(host, needed_by)
    for started in control.as_dependencies(outcomes, needed_by, [spec.name]):
        host.tell(f"warning: {started.error.message}" if started.error else f"{started.name}: {started.what}")
    error = outcomes[spec.name].error
    if error:
        raise QsysdError(
            error.message, hint="nothing was created; fix the error and run the command again", code=1
        )

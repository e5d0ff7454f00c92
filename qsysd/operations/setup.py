"""setup: prepare a host. It can be repeated."""

from __future__ import annotations

import grp
import ipaddress
import os
from dataclasses import dataclass
from enum import StrEnum

from qsysd import network, paths
from qsysd.config import dump
from qsysd.errors import ExistsError, HostError, QsysdError, StateError
from qsysd.files import read_text, write_atomic
from qsysd.host import divergence, journal, keys, locks, rendering
from qsysd.host.changes import setting_up
from qsysd.host.context import Host
from qsysd.host.helper_install import install_helper, install_units
from qsysd.model.defaults import Defaults
from qsysd.model.network import NetworkKind, NetworkSpec
from qsysd.names import in_order
from qsysd.runtime import spawn

DEFAULT_NETWORK = "default"


class Action(StrEnum):
    """A kind of step of a set-up."""

    CREATED_GROUP = "created_group"
    INSTALLED_HELPER = "installed_helper"
    INSTALLED_UNIT = "installed_unit"
    CREATED_NETWORK = "created_network"
    RENDERED_NETWORK = "rendered_network"
    STARTED_UNIT = "started_unit"
    RENDERED_VM = "rendered_vm"


@dataclass(frozen=True)
class Step:
    """A step that was done. subject: a group, directory, unit, network or VM; detail: a network's subnet."""

    action: Action
    subject: str
    detail: str = ""


@dataclass(frozen=True)
class SetUp:
    """The result of a set-up: the steps that were needed, none on a host that is ready.

    outdated: the VMs whose QEMU runs with an older rendering, which a restart replaces.
    """

    steps: list[Step]
    outdated: list[str]


def setup(host: Host) -> SetUp:
    """Prepare this host; return the steps that were needed.

    Raise HostError if systemd or a program is missing.
    """
    done: list[Step] = []
    with setting_up(host):
        _directories(host)
        done += _group()
        if directory := install_helper(host):
            done.append(Step(Action.INSTALLED_HELPER, directory))
        done += [Step(Action.INSTALLED_UNIT, name) for name in install_units(host)]
        if read_text(host.scope.defaults_file) is None:
            write_atomic(host.scope.defaults_file, dump.commented(Defaults()), 0o644)
        keys.host_key(host.scope)
        done += _default_network(host)
        done += _networks(host)
        done += _renderings(host)
    return SetUp(done, _outdated(host))


def _directories(host: Host) -> None:
    scope = host.scope
    for path, mode in (
        (scope.config_dir, 0o755),
        # definitions and environment files may contain secrets
        (scope.definitions_dir, 0o700),
        (scope.networks_dir, 0o755),
        (scope.state_dir, 0o755),
        (scope.images_dir, 0o755),
        # systemd gives the owners' UIDs of VMs' directories to other services, too
        (scope.vms_dir, 0o700),
        (scope.network_state_dir, 0o755),
        (scope.intents_dir, 0o700),
        (scope.known_hosts_dir, 0o700),
        (scope.helper_dir, 0o755),
        (scope.runtime_dir, 0o755),
    ):
        try:
            os.makedirs(path, exist_ok=True)
            os.chmod(path, mode)
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from error


def _group() -> list[Step]:
    """Create the group kvm: systemd does not start a unit with a group that does not exist."""
    try:
        grp.getgrnam("kvm")
    except KeyError:
        spawn.run(["systemd-sysusers", "--inline", "g kvm - -"])
        return [Step(Action.CREATED_GROUP, "kvm")]
    return []


def _default_network(host: Host) -> list[Step]:
    """Define the network `default`, if it is not defined, on a subnet that is free on this host."""
    if DEFAULT_NETWORK in host.store.network_names():
        return []
    taken = [host.store.load_network(name).subnet for name in host.store.network_names()]
    spec = NetworkSpec(name=DEFAULT_NETWORK, kind=NetworkKind.NAT, subnet=network.choose_subnet(taken))
    write_atomic(host.scope.network_definition(spec.name), dump.dump_network(spec), 0o644)
    return [Step(Action.CREATED_NETWORK, spec.name, spec.subnet)]


def _networks(host: Host) -> list[Step]:
    """Render each network, and bring up those that changed or are down."""
    done: list[Step] = []
    for name in host.store.network_names():
        changed = render_network(host, host.store.load_network(name))
        if changed:
            done.append(Step(Action.RENDERED_NETWORK, name))
        done += _network_up(host, name, changed=changed)
    return done


def render_network(host: Host, spec: NetworkSpec) -> bool:
    """Write the rendering of a network's definition; return whether anything differed."""
    _refuse_to_overlap(host, spec)
    _refuse_to_cut_off(host, spec)
    network.prepare(host.scope, spec.name)
    different = divergence.network_differences(host, spec)
    for path, text in different.items():
        write_atomic(path, text, 0o644)
    return bool(different)


def _refuse_to_overlap(host: Host, spec: NetworkSpec) -> None:
    """Raise ExistsError if a network's new subnet overlaps that of another network."""
    if divergence.has_subnet(host, spec):
        return
    subnet = ipaddress.ip_network(spec.subnet)
    for other in set(host.store.network_names()) - {spec.name}:
        other_subnet = host.store.load_network(other).subnet
        if subnet.overlaps(ipaddress.ip_network(other_subnet)):
            raise ExistsError(
                f"network {spec.name}: the subnet {spec.subnet} overlaps {other_subnet} of network {other}",
                hint=f"correct {host.scope.network_definition(spec.name)}, then: qsysd setup",
            )


def _refuse_to_cut_off(host: Host, spec: NetworkSpec) -> None:
    """Raise StateError if a network's subnet was changed and VMs have addresses outside of the new one."""
    if read_text(host.scope.network_environment(spec.name)) is None or divergence.has_subnet(host, spec):
        return
    names = divergence.cut_off(host, spec.name, spec.subnet)
    if names:
        raise StateError(
            f"network {spec.name}: the subnet {spec.subnet} would cut off {', '.join(names)}",
            hint=f"restore the old subnet in {host.scope.network_definition(spec.name)}; or give each VM "
            "an address in the new one first: qsysd edit VM",
        )


def _network_up(host: Host, name: str, *, changed: bool) -> list[Step]:
    units = [paths.network_unit(name), paths.dhcp_unit(name)]
    states = host.systemd.states(units)
    down = [unit for unit in units if unit not in states or states[unit].active != "active"]
    if down or changed:
        host.systemd.enable(units)
        for unit in units:
            host.systemd.reset_failed(unit)
            (result,) = host.systemd.run_jobs("RestartUnit", [unit], timeout=60)
            if not result.done:
                why = journal.failure(host, unit) or result.result
                raise QsysdError(f"{unit} did not start: {why}", hint=f"systemctl status {unit}")
    return [Step(Action.STARTED_UNIT, unit) for unit in down]


def _renderings(host: Host) -> list[Step]:
    """Render the VMs with this version's templates; running VMs are not changed."""
    names = host.store.names()
    with locks.locked(host, names):
        changed, errors = rendering.render_each(host, names)
    for error in errors.values():
        host.progress(f"warning: {error.message}")
    return [Step(Action.RENDERED_VM, name) for name, files in changed.items() if files]


def _outdated(host: Host) -> list[str]:
    """Return the VMs whose QEMU was started with another rendering than the one on disk."""
    found = []
    for unit in host.systemd.active_units(paths.UNIT_PATTERN):
        name = paths.vm_of_unit(unit)
        started = host.store.started(name)
        if started and started.digest != host.store.summary(name).digest:
            found.append(name)
    return in_order(found)

"""The rendering of a definition: host entries, seed, drop-in, environment file. Compare and write it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qsysd import network, render, seed
from qsysd.config import load
from qsysd.errors import InvalidError, QsysdError
from qsysd.host import checks
from qsysd.host.context import Host
from qsysd.host.unit_jobs import refresh, reload_dhcp
from qsysd.model.vm import VMSpec
from qsysd.qemu.nic import ports
from qsysd.render import Rendered
from qsysd.runtime.ports import Port
from qsysd.store.claims import Claims, of_others, rendered_ports


def of_definition(host: Host, name: str) -> tuple[VMSpec, Rendered]:
    """Return a VM's spec and its rendering.

    Raise NotFoundError, and InvalidError also for a definition that `create` has not completed.
    """
    text = host.store.require(name)
    path = host.scope.definition(name)
    spec = load.parse_vm(text, path, name=name, defaults=host.store.defaults())
    if not spec.uuid or not spec.machine or not all(nic.mac for nic in spec.nics):
        raise InvalidError(
            f"{path}: no VM was created from it: it lacks a UUID, a machine type or a MAC",
            hint=f"mv {path} to another directory, then: qsysd create --file FILE",
        )
    return spec, render.vm(spec, host.scope, text)


def write(host: Host, spec: VMSpec, rendered: Rendered | None = None) -> list[str]:
    """Write the rendering of a VM; return the paths of the files that differed.

    rendered: the rendering of the spec, if known.

    The environment file is written last: after a kill, `Store.is_stale` is true and the next `start` or
    `render` writes the rest.
    """
    scope = host.scope
    rendered = rendered or render.vm(spec, scope)
    _write_hosts(host, spec, rendered_ports(host.store, spec.name))
    stale_seed = scope.seed(spec.name) in host.store.differences(spec.name, rendered)
    if stale_seed:
        seed.write(spec, scope)
    return [scope.seed(spec.name)] * stale_seed + host.store.write_rendered(spec.name, rendered)


def _write_hosts(host: Host, spec: VMSpec, before: tuple[Port, ...] | None) -> None:
    """Write a VM's addresses for the DHCP service of each of its networks, and remove them from others.

    before: the ports of the rendering on disk, None without one. A killed command may have written the
    entries without reloading dnsmasq, so a network whose entries differ from these is reloaded.
    """
    after = ports(spec)
    for name in dict.fromkeys(port.network for port in (*after, *(before or ()))):
        entries = _entries(after, name)
        if entries:
            changed = network.write_hosts(host.scope, name, spec.name, entries)
        else:
            changed = network.remove_host(host.scope, name, spec.name)
        if changed or (before is not None and entries != _entries(before, name)):
            reload_dhcp(host, name)


def _entries(known: Iterable[Port], name: str) -> list[tuple[str, str]]:
    """Return the MACs and addresses of the ports on a network."""
    return [(port.mac, port.address) for port in known if port.network == name and port.address]


def render_each(host: Host, names: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, QsysdError]]:
    """Write the renderings of VMs; return the files that differed, and the errors, by VM.

    The VMs' exclusive locks must be held. systemd is reloaded at most once.
    """
    changed: dict[str, list[str]] = {}
    errors: dict[str, QsysdError] = {}
    claims: list[Claims] = []
    for name in names:
        try:
            spec, rendered = of_definition(host, name)
            if host.store.is_changed_by_hand(name):
                # Read once: with 1000 changed definitions, reading them for each takes minutes.
                claims = claims or of_others(host.store)
                checks.check_unique(host, spec, [other for other in claims if other.name != name])
            changed[name] = write(host, spec, rendered)
        except QsysdError as error:
            errors[name] = error
    refresh(host, list(changed))
    return changed, errors

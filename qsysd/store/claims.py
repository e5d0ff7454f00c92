"""What VMs have that no other VM may have too, read from what was rendered: most need no YAML."""

from __future__ import annotations

from dataclasses import dataclass

from qsysd.errors import InvalidError, QsysdError
from qsysd.qemu.nic import ports
from qsysd.runtime.ports import Port, parse_ports
from qsysd.store import Store, environment


@dataclass(frozen=True)
class Claims:
    """What a VM has that no other may have too, the VMs that it depends on, and its memory."""

    name: str
    uuid: str
    ports: tuple[Port, ...]
    depends_on: tuple[str, ...]
    memory_mib: int


def of_others(store: Store, vm: str = "") -> list[Claims]:
    """Return what all VMs except `vm` claim.

    A VM whose definition is not valid keeps what was rendered from it last.
    """
    return [_claims(store, name) for name in store.names() if name != vm]


def _claims(store: Store, vm: str) -> Claims:
    rendered = environment.read(store.scope.environment(vm))
    if store.is_changed(vm, rendered):
        try:
            spec = store.load(vm)
        except QsysdError:
            pass
        else:
            return Claims(vm, spec.uuid, tuple(ports(spec)), spec.depends_on, spec.memory_mib)
    return Claims(
        name=vm,
        uuid=rendered.get("QSYSD_UUID", ""),
        ports=_ports(rendered),
        depends_on=environment.names(rendered.get("QSYSD_DEPENDS_ON")),
        memory_mib=environment.number(rendered.get("QSYSD_MEMORY_MIB")) or 0,
    )


def rendered_ports(store: Store, vm: str) -> tuple[Port, ...] | None:
    """Return the ports that were rendered last, which the definition may lack now; None if none were."""
    rendered = environment.read(store.scope.environment(vm))
    return _ports(rendered) if rendered else None


def _ports(rendered: dict[str, str]) -> tuple[Port, ...]:
    """Return the ports that QSYSD_NICS describes, none if it is damaged."""
    try:
        return tuple(parse_ports(rendered.get("QSYSD_NICS", "")))
    except InvalidError:
        return ()

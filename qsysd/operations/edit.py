"""edit and render: change definitions, and write their renderings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qsysd.config import dump, load
from qsysd.config.changes import changed_fields
from qsysd.errors import InvalidError, QsysdError
from qsysd.host import allocation, checks, rendering, selection, unit_jobs, unit_states
from qsysd.host.changes import changing
from qsysd.host.context import Host
from qsysd.model.field import Change
from qsysd.model.vm import VMSpec
from qsysd.store import claims


@dataclass(frozen=True)
class Edited:
    """A definition that was replaced. restart: whether it takes effect at a restart, because the VM runs."""

    name: str
    restart: bool


@dataclass(frozen=True)
class Rendered:
    """The result of a rendering: the files that differed, and the errors, by VM."""

    differences: dict[str, list[str]]
    failed: dict[str, QsysdError]


def edit(host: Host, name: str, text: str, *, before: str) -> Edited:
    """Replace a VM's definition.

    before: the text that was edited. Raise QsysdError if the definition has been changed since then, and
    InvalidError, also for a change that an existing VM does not support.
    """
    with changing(host, [name], addresses=True):
        if host.store.require(name) != before:
            raise QsysdError(f"{name} was changed by another command meanwhile", hint=f"qsysd edit {name}")
        old = load.parse_vm(before, host.scope.definition(name), name=name, defaults=host.store.defaults())
        new = load.parse_vm(text, f"{name}.yaml", name=name, defaults=host.store.defaults())
        new = allocation.keep_nic_names(old, new, load.load_plain(text, f"{name}.yaml"))
        new = replace(
            new, uuid=new.uuid or old.uuid, machine=allocation.pinned(host, new.machine or old.machine)
        )
        _check_kept(old, new)
        others = claims.of_others(host.store, name)
        new = replace(new, nics=allocation.complete_nics(host, new, others))
        checks.check_references(host, new, others)
        host.store.write_definition(new.name, dump.dump_vm(new))
        rendering.write(host, new)
        unit_jobs.refresh(host, [name])
        _warn_of_first_boot(host, old, new)
        return Edited(name, restart=unit_states.is_running(host, name))


def _warn_of_first_boot(host: Host, old: VMSpec, new: VMSpec) -> None:
    """Report the changes that cloud-init does not apply to a guest that has booted before."""
    if old.ssh_keys != new.ssh_keys:
        host.progress(
            f"note: {new.name}: ssh_keys takes effect at the guest's first boot only; "
            "in a guest that has booted, edit ~/.ssh/authorized_keys"
        )
    if old.user != new.user:
        host.progress(f"note: {new.name}: user is the login of qsysd ssh; it is not created in the guest")


def _check_kept(old: VMSpec, new: VMSpec) -> None:
    """Raise InvalidError with all changes that an existing VM does not support."""
    refused = [changed for changed in changed_fields(old, new) if changed.is_refused]
    if refused:
        problems = (f"{changed.path} of {new.name} {_why_refused(changed.change)}" for changed in refused)
        raise InvalidError("\n".join(problems), hint="create another VM")


def _why_refused(change: Change) -> str:
    if change is Change.REMOVE:
        return "can only be removed"
    return "cannot be changed: it is on the VM's disk"


def render(host: Host, names: Sequence[str] | None, *, check: bool = False) -> Rendered:
    """Write the files of VMs that differ from the renderings of their definitions.

    check: whether only to compare them. A definition that is not valid does not prevent rendering others.
    """
    if check:
        host.require_root()
        return _check(host, selection.resolve(host, names))
    with changing(host, names) as vms:
        differences, failed = rendering.render_each(host, vms)
    return Rendered(differences, failed)


def _check(host: Host, names: Sequence[str]) -> Rendered:
    found = Rendered({}, {})
    for name in names:
        try:
            _, rendered = rendering.of_definition(host, name)
        except QsysdError as error:
            found.failed[name] = error
        else:
            found.differences[name] = host.store.differences(name, rendered)
    return found

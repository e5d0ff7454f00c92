"""Change definitions: edit, and render again what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qsysd import config, paths, render
from qsysd.errors import InvalidError, QsysdError
from qsysd.operations import control, create, rendering, transaction
from qsysd.operations.host import Host
from qsysd.operations.recovery import recover
from qsysd.spec import VMSpec


def edit(host: Host, name: str, text: str, *, before: str) -> bool:
    """Put a new definition in the place of the old one; return whether it waits for a restart.

    before: the text that was edited; when the definition is no longer that, somebody else changed it.
    What cannot change stays: name, UUID, image, the number of disks. Raises InvalidError, and
    QsysdError when two people edited at once.
    """
    host.require_root()
    recover(host)
    with transaction.locked(host, [name]), transaction.locked(host, [paths.ADDRESSES]):
        if host.store.require(name) != before:
            raise QsysdError(f"{name} was changed by somebody else meanwhile", hint=f"qsysd edit {name}")
        old = config.parse_vm(before, host.scope.definition(name), name=name, defaults=host.store.defaults())
        new = config.parse_vm(text, f"{name}.yaml", name=name, defaults=host.store.defaults())
        new = replace(new, uuid=new.uuid or old.uuid, machine=create.pinned(host, new.machine or old.machine))
        # The digest of the image may be removed, never replaced.
        new = replace(new, image_digest=old.image_digest if new.image_digest else None)
        _check_kept(old, new)
        others = host.store.claims(but=name)
        new = replace(new, nics=create.complete_nics(host, new, others))
        create.check_references(host, new, others)
        host.store.write_definition(new)
        rendering.write(host, new, render.vm(new, host.scope))
        _refresh(host, [name])
        _warn_of_first_boot(host, old, new)
        return control.is_running(host, name)


def _warn_of_first_boot(host: Host, old: VMSpec, new: VMSpec) -> None:
    """Name the changes that cloud-init does not apply to a guest that has booted before."""
    if old.ssh_keys != new.ssh_keys:
        host.tell(
            f"note: {new.name}: ssh_keys takes effect at the guest's first boot only; "
            "in a guest that has booted, edit ~/.ssh/authorized_keys"
        )
    if old.user != new.user:
        host.tell(f"note: {new.name}: user is the login of qsysd ssh; it is not created in the guest")


def _check_kept(old: VMSpec, new: VMSpec) -> None:
    for key, was, becomes in (
        ("uuid", old.uuid, new.uuid),
        ("image", old.image, new.image),
        ("disks", old.disks, new.disks),
        ("seed", old.seed, new.seed),
    ):
        if was != becomes:
            raise InvalidError(
                f"{key} of {new.name} cannot be changed: it is on the VM's disk", hint="create another VM"
            )


def _refresh(host: Host, names: Sequence[str]) -> None:
    """Let systemd see changed drop-ins of loaded units: also `systemctl start` must use them."""
    host.systemd.refresh([paths.unit(name) for name in names])


def check(host: Host, names: Sequence[str]) -> dict[str, list[str]]:
    """Return per VM the files that are not what its definition renders to. Raises InvalidError."""
    return {name: host.store.differences(name, rendering.of_definition(host, name)[1]) for name in names}


def render_again(host: Host, names: Sequence[str]) -> dict[str, list[str]]:
    """Write what definitions render to; return per VM the files that were not so. Raises InvalidError."""
    changed, errors = render_each(host, names)
    for error in errors.values():
        raise error
    return changed


def render_each(host: Host, names: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, QsysdError]]:
    """Write what definitions render to; return per VM the files that were not so, and what prevented it.

    systemd reads changed drop-ins once for all of them.
    """
    host.require_root()
    recover(host)
    changed: dict[str, list[str]] = {}
    errors: dict[str, QsysdError] = {}
    with transaction.locked(host, names):
        for name in names:
            try:
                spec, rendered = rendering.of_definition(host, name)
                if host.store.is_changed_by_hand(name):
                    create.check_unique(host, spec, host.store.claims(but=name))
                changed[name] = rendering.write(host, spec, rendered)
            except QsysdError as error:
                errors[name] = error
        _refresh(host, list(changed))
    return changed, errors

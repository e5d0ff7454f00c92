"""create: create a VM, all or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from qsysd import paths
from qsysd.config import dump, load, public_keys
from qsysd.errors import ExistsError, InvalidError, QsysdError
from qsysd.host import (
    allocation,
    artifacts,
    base_images,
    changes,
    checks,
    guest_ssh,
    intents,
    keys,
    listing,
    locks,
    unit_jobs,
)
from qsysd.host.context import Host
from qsysd.host.listing import ListedVM
from qsysd.host.removal import remove_everything
from qsysd.model.defaults import Defaults
from qsysd.model.vm import VMSpec
from qsysd.store import claims

Scalar = str | int | float | bool | None
# Definitions are not nested deeper.
Value = Scalar | Mapping[str, Scalar] | Sequence[Scalar | Mapping[str, Scalar]]


@dataclass(frozen=True)
class Created:
    """A new VM. address: its first, None without one. answered_after: seconds until SSH answered."""

    vm: ListedVM
    address: str | None
    answered_after: float | None = None


def create(
    host: Host,
    definition: str | Mapping[str, Value],
    source: str = "",
    *,
    ssh_keys: Sequence[str] = (),
    start: bool = True,
    enable: bool = True,
    wait: bool = False,
    wait_timeout: float = guest_ssh.WAIT_TIMEOUT,
) -> Created:
    """Create a VM from a definition: YAML, or the same as a mapping. An image with a recipe is built.

    source: the name of the definition's file for messages, "" for a command line. ssh_keys: public keys for
    the guest's user, in addition to those of the definition, the host and the caller. wait: whether to report
    the address when the VM runs, and then to wait until the guest's SSH server answers, for at most
    wait_timeout seconds; after a timeout the VM is kept.

    Raise InvalidError, ExistsError and NotFoundError before anything is created, TimeoutExpired of the wait,
    and any other error after everything has been removed again.
    """
    host.require_ready()
    public_keys.check(ssh_keys)
    defaults = host.store.defaults()
    spec = load.parse_vm(definition, source, defaults=defaults)
    if wait:
        _check_wait(spec, start=start)
    _ensure_image(host, spec)
    all_keys = [*ssh_keys, *keys.for_new_guest(host.scope)]
    with changes.changing(host, [spec.name], ready=True, images=[spec.image] if spec.image else []):
        _check_free(host, spec.name)
        spec = _create(host, spec, defaults, all_keys, start=start, enable=enable)
    address = next((nic.address for nic in spec.nics if nic.address), None)
    answered_after = None
    if wait:
        # Also the output of a wait that fails must show that the VM was created.
        host.progress(f"{spec.name}: running at {address}")
        answered_after = guest_ssh.wait(host, spec.name, wait_timeout)
    (vm,) = listing.listed(host, [spec.name])
    return Created(vm, address, answered_after)


def _create(
    host: Host, spec: VMSpec, defaults: Defaults, ssh_keys: Sequence[str], *, start: bool, enable: bool
) -> VMSpec:
    """Create all parts of a VM whose name is free, or none; return the completed spec."""
    with ExitStack() as undo:
        # Two creates must not allocate the same address: it is in use when it is in a definition.
        with locks.locked(host, [paths.ADDRESSES]):
            others = claims.of_others(host.store, spec.name)
            spec = allocation.complete(host, spec, defaults, others, ssh_keys)
            checks.check(host, spec, others)
            undo.enter_context(
                intents.intent(host, spec.name, "create", lambda: remove_everything(host, spec.name))
            )
            host.store.write_definition(spec.name, dump.dump_vm(spec))
        artifacts.make(host, spec)
        if enable:
            unit_jobs.enable(host, [spec.name])
        if start:
            _start(host, spec.name)
    return spec


def _check_wait(spec: VMSpec, *, start: bool) -> None:
    """Raise InvalidError for a VM whose SSH server cannot answer."""
    if not start:
        raise InvalidError("--wait needs a VM that is started", hint="leave out --no-start or --wait")
    if not spec.nics:
        raise InvalidError(
            "--wait needs a VM with a network",
            hint=f"omit --wait, and use: qsysd console {spec.name}",
        )


def _ensure_image(host: Host, spec: VMSpec) -> None:
    """Build the image of a definition if it does not exist and has a recipe.

    A build takes minutes: it is not begun for a VM that cannot be created, and the VM is not locked
    during it.
    """
    if not spec.image or host.images.exists(spec.image):
        return
    changes.recover(host)
    _check_free(host, spec.name)
    checks.check_references(host, spec, claims.of_others(host.store, spec.name))
    base_images.ensure(host, spec.image)


def _check_free(host: Host, name: str) -> None:
    """Raise ExistsError if the name is in use, and HostError without systemd."""
    host.systemd.state(paths.unit(name))
    if host.store.exists(name):
        definition = host.scope.definition(name)
        if not os.path.lexists(host.scope.vm_dir(name)):
            raise ExistsError(
                f"{definition} exists, but no VM was created from it",
                hint=f"mv {definition} to another directory, then: qsysd create --file FILE",
            )
        raise ExistsError(f"VM {name!r} already exists", hint=f"qsysd status {name}, or use another name")
    for path in (host.scope.vm_dir(name), host.scope.environment(name), host.scope.drop_in(name)):
        if os.path.lexists(path):
            raise ExistsError(
                f"{path} exists, though VM {name!r} does not",
                hint=f"remove the remains of a VM: qsysd delete {name}",
            )


def _start(host: Host, name: str) -> None:
    """Start a new VM and the VMs that it depends on. Raise QsysdError if it does not start."""
    needed_by = unit_jobs.dependencies(host, [name])
    # Without the locks of the dependencies: two creates could wait for each other.
    outcomes = unit_jobs.start_units(host, needed_by)
    for started in unit_jobs.as_dependencies(outcomes, needed_by, [name]):
        if started.error:
            host.progress(f"warning: {started.error.message}")
        else:
            host.progress(f"{started.name}: started ({started.needed_by} depends on it)")
    error = outcomes[name].error
    if error:
        raise QsysdError(
            error.message, hint="nothing was created; fix the error and run the command again", code=1
        )

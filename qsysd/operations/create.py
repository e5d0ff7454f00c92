"""Make a VM: all of it, or nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from qsysd import files, paths, render
from qsysd.config import dump, load
from qsysd.errors import ExistsError, InvalidError, QsysdError
from qsysd.host import allocation, base_images, checks, intents, locks, rendering, unit_jobs
from qsysd.host.changes import changing, recover
from qsysd.host.context import Host
from qsysd.host.removal import remove_everything
from qsysd.model.vm import VMSpec
from qsysd.store import claims


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
    defaults = host.store.defaults()
    spec = load.parse_vm(text, source, defaults=defaults)
    with changing(host, [spec.name], ready=True, images=[spec.image] if spec.image else []):
        _check_free(host, spec.name)
        with ExitStack() as undo:
            # No two VMs choose an address at once; it is taken when it stands in a definition.
            with locks.locked(host, [paths.ADDRESSES]):
                others = claims.of_others(host.store, spec.name)
                spec = allocation.complete(host, spec, defaults, others, ssh_keys)
                checks.check(host, spec, others)
                undo.enter_context(
                    intents.intent(host, spec.name, "create", lambda: remove_everything(host, spec.name))
                )
                host.store.write_definition(spec.name, dump.dump_vm(spec))
            _make(host, spec)
            if enable:
                host.systemd.enable([paths.unit(spec.name)])
                unit_jobs.sync_links(host)
            if start:
                _start(host, spec)
    return spec


def ensure_image(host: Host, text: str, source: str) -> None:
    """Make sure that the image which a definition names is there: one that has a recipe is built.

    That takes minutes, so it is not begun for a VM that could not be made. Raises InvalidError,
    ExistsError, NotFoundError.
    """
    host.require_ready()
    spec = load.parse_vm(text, source, defaults=host.store.defaults())
    if not spec.image or host.images.exists(spec.image):
        return
    recover(host)
    _check_free(host, spec.name)
    checks.check_references(host, spec, claims.of_others(host.store, spec.name))
    base_images.ensure(host, spec.image)


def require_network(host: Host, text: str, source: str) -> None:
    """Raise InvalidError for a definition without a NIC: SSH could not be waited for."""
    if not load.parse_vm(text, source, defaults=host.store.defaults()).nics:
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
        raise ExistsError(f"VM {name!r} already exists", hint=f"qsysd status {name}, or take another name")
    for path in (host.scope.vm_dir(name), host.scope.environment(name), host.scope.drop_in(name)):
        if os.path.lexists(path):
            raise ExistsError(
                f"{path} exists, though VM {name!r} does not",
                hint=f"remove what is left of a VM: qsysd delete {name}",
            )


def _make(host: Host, spec: VMSpec) -> None:
    scope = host.scope
    os.mkdir(scope.vm_dir(spec.name), 0o700)
    files.sync_directory(scope.vms_dir)
    for disk in spec.disks:
        path = scope.overlay(spec.name, disk.name)
        if spec.image and disk is spec.disks[0]:
            host.images.create_overlay(spec.image, path, disk.size)
        elif disk.size is None:
            raise InvalidError(f"disk {disk.name!r} of {spec.name} needs a size")
        else:
            host.images.create_disk(path, disk.size)
        os.chmod(path, 0o600)
        files.sync_file(path)
    rendering.write(host, spec, render.vm(spec, scope))
    files.sync_directory(scope.vm_dir(spec.name))


def _start(host: Host, spec: VMSpec) -> None:
    needed_by = unit_jobs.dependencies(host, [spec.name])
    # Without the locks of the dependencies: two creates could wait for each other.
    outcomes = unit_jobs.start_units(host, needed_by)
    for started in unit_jobs.as_dependencies(outcomes, needed_by, [spec.name]):
        if started.error:
            host.progress(f"warning: {started.error.message}")
        else:
            host.progress(f"{started.name}: started ({started.needed_by} depends on it)")
    error = outcomes[spec.name].error
    if error:
        raise QsysdError(
            error.message, hint="nothing was created; fix the error and run the command again", code=1
        )

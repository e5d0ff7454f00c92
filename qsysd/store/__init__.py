"""Definitions on disk, and what is rendered from them.

`Store` reads and writes them; `claims` compares VMs with each other. Neither takes locks: see host.locks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from qsysd import files
from qsysd.digests import digest
from qsysd.errors import NotFoundError, QsysdError
from qsysd.files import make_directory, read_bytes, read_text, write_atomic
from qsysd.names import closest, in_order
from qsysd.paths import SEED_MARK, UNIT_PREFIX, Scope, is_name
from qsysd.store import environment
from qsysd.systemd.unit_files import drop_in_digest

if TYPE_CHECKING:
    from qsysd.model.defaults import Defaults
    from qsysd.model.network import NetworkSpec
    from qsysd.model.vm import VMSpec
    from qsysd.render import Rendered

# ECMA-119: the application identifier of the primary volume descriptor, which is in sector 16.
_SEED_MARK_OFFSET = 16 * 2048 + 574
_SEED_MARK_LENGTH = 128

SSH_ANSWERED = "QSYSD_SSH_ANSWERED"


@dataclass(frozen=True)
class Summary:
    """What a list shows of a VM, from its environment file."""

    name: str
    memory_mib: int | None
    cpus: int | None
    image: str | None
    addresses: tuple[str, ...]
    digest: str | None
    disks: tuple[str, ...] = ()
    image_digest: str = ""


@dataclass(frozen=True)
class Started:
    """What a VM was started with: None and "" if the helper that started it was of an older version.

    ssh_answered: whether the guest's SSH server has answered since then.
    """

    digest: str
    memory_mib: int | None
    cpus: int | None
    accelerator: str
    ssh_answered: bool = False


def _parser() -> ModuleType:
    """Return config.load. `list` parses no definition, and `start` only a stale one."""
    from qsysd.config import load

    return load


class Store:
    """The definitions of a scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    # names

    def names(self) -> list[str]:
        """Return the names of all VMs in their natural order. Raise QsysdError without permission."""
        return self._names(self.scope.definitions_dir)

    def network_names(self) -> list[str]:
        """Return the names of all networks in their natural order. Raise QsysdError without permission."""
        return self._names(self.scope.networks_dir)

    def _names(self, directory: str) -> list[str]:
        try:
            entries = os.listdir(directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise QsysdError(
                f"{directory} cannot be read: {error.strerror}", hint=files.hint(error)
            ) from error
        names = (entry.removesuffix(".yaml") for entry in entries if entry.endswith(".yaml"))
        # Editors leave other files beside a definition (`.#web1.yaml`).
        return in_order(name for name in names if is_name(name))

    def undefined(self) -> list[str]:
        """Return the names of VMs that have files but no definition, in their natural order."""
        found: set[str] = set()
        for directory, prefix, suffix in (
            (self.scope.definitions_dir, "", ".env"),
            (self.scope.vms_dir, "", ""),
            (self.scope.wants_dir, UNIT_PREFIX, ".service"),
        ):
            with suppress(OSError):
                for entry in os.listdir(directory):
                    if entry.startswith(prefix) and entry.endswith(suffix):
                        found.add(entry.removeprefix(prefix).removesuffix(suffix))
        return in_order(name for name in found - set(self.names()) if is_name(name))

    def exists(self, vm: str) -> bool:
        """Return whether a VM has a definition, valid or not."""
        return is_name(vm) and os.path.lexists(self.scope.definition(vm))

    # definitions

    def require(self, vm: str) -> str:
        """Return the text of a VM's definition. Raise NotFoundError, QsysdError if it cannot be read."""
        # Only a name: `delete ../networks/default` must not find anything.
        path = self.scope.definition(vm) if is_name(vm) else ""
        text = read_text(path) if path else None
        if text is not None:
            return text
        if self.exists(vm):
            raise QsysdError(f"{path} cannot be read: a link to a file that does not exist")
        if vm in self.undefined():
            raise NotFoundError(
                f"{vm} has no definition: {path} does not exist",
                hint=f"restore the file, or remove what is left of the VM: qsysd delete {vm}",
            )
        near = closest(vm, self.names())
        raise NotFoundError(
            f"VM {vm!r} does not exist",
            hint=f"did you mean {near}?" if near else "qsysd list shows the VMs of this host",
        )

    def load(self, vm: str) -> VMSpec:
        """Return a VM's spec. Raise NotFoundError, and InvalidError with all errors in the file."""
        spec: VMSpec = _parser().parse_vm(
            self.require(vm), self.scope.definition(vm), name=vm, defaults=self.defaults()
        )
        return spec

    def write_definition(self, vm: str, text: str) -> None:
        """Write a VM's definition."""
        write_atomic(self.scope.definition(vm), text, 0o600)

    def defaults(self) -> Defaults:
        """Return the host's defaults. Raise InvalidError."""
        text = read_text(self.scope.defaults_file) or ""
        defaults: Defaults = _parser().parse_defaults(text, self.scope.defaults_file)
        return defaults

    def load_network(self, network: str) -> NetworkSpec:
        """Return a network's spec. Raise NotFoundError, InvalidError."""
        path = self.scope.network_definition(network)
        text = read_text(path) if is_name(network) else None
        if text is None:
            known = ", ".join(self.network_names())
            hint = f"networks of this host: {known}" if known else "qsysd setup creates the network 'default'"
            raise NotFoundError(f"network {network!r} does not exist", hint=hint)
        spec: NetworkSpec = _parser().parse_network(text, path, name=network)
        return spec

    def depends_on(self, vm: str) -> tuple[str, ...]:
        """Return the VMs after which a VM starts; none for a VM that does not exist."""
        rendered = environment.read(self.scope.environment(vm))
        if self.is_changed(vm, rendered):
            with suppress(QsysdError):
                return self.load(vm).depends_on
        return environment.names(rendered.get("QSYSD_DEPENDS_ON"))

    # what is rendered from a definition

    def rendered(self, vm: str, rendered: Rendered) -> Iterator[tuple[str, str, int]]:
        """Yield path, text and mode of each text file of a rendering, in the order to write them.

        The environment file is the last: it contains the digests of the others (`is_stale`).
        """
        yield self.scope.drop_in(vm), rendered.drop_in, 0o644
        yield self.scope.environment(vm), rendered.environment, 0o600

    def differences(self, vm: str, rendered: Rendered) -> list[str]:
        """Return the paths of the files that differ from a rendering; the seed's comes first."""
        found = [self.scope.seed(vm)] if rendered.seed and self.seed_digest(vm) != rendered.seed else []
        texts = self.rendered(vm, rendered)
        return found + [path for path, text, _ in texts if read_bytes(path) != text.encode()]

    def write_rendered(self, vm: str, rendered: Rendered) -> list[str]:
        """Write the text files that differ from a rendering; return the paths. The seed must be in place."""
        make_directory(self.scope.drop_in_dir(vm), 0o755)
        changed = self.differences(vm, rendered)
        for path, text, mode in self.rendered(vm, rendered):
            if path in changed:
                write_atomic(path, text, mode)
        return changed

    def is_stale(self, vm: str) -> bool:
        """Return whether the environment file does not belong to the definition, drop-in and seed on disk.

        Digests are compared: a file that was restored with an old time stamp is found.
        """
        if not os.path.exists(self.scope.definition(vm)):
            return False
        rendered = environment.read(self.scope.environment(vm))
        expected_seed = rendered.get("QSYSD_SEED", "")
        return (
            self.is_changed(vm, rendered)
            or drop_in_digest(self.scope.drop_in(vm)) != rendered.get("QSYSD_EXPECTED_DROP_IN", "")
            or (expected_seed != "" and self.seed_digest(vm) != expected_seed)
        )

    def is_changed_by_hand(self, vm: str) -> bool:
        """Return whether a VM's definition is new or differs from the one that was rendered last.

        Return False for a rendering of an older version, which has no digest of the definition.
        """
        rendered = environment.read(self.scope.environment(vm))
        return not rendered or (rendered.get("QSYSD_DEFINITION", "") != "" and self.is_changed(vm, rendered))

    def is_changed(self, vm: str, rendered: Mapping[str, str]) -> bool:
        """Return whether a definition exists from which an environment file was not rendered.

        rendered: the variables of that environment file.
        """
        definition = read_bytes(self.scope.definition(vm))
        return definition is not None and rendered.get("QSYSD_DEFINITION") != digest(definition)

    def seed_digest(self, vm: str) -> str | None:
        """Return the digest of the documents from which the VM's seed was built; None without such a seed."""
        try:
            # QEMU can write to the directory: no link is followed.
            file = os.open(self.scope.seed(vm), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            mark = os.pread(file, _SEED_MARK_LENGTH, _SEED_MARK_OFFSET).decode("ascii", "replace").rstrip()
        except OSError:
            return None
        finally:
            os.close(file)
        return mark.removeprefix(SEED_MARK) if mark.startswith(SEED_MARK) else None

    def summary(self, vm: str) -> Summary:
        """Return what a list shows of a VM; without a valid environment file only its name."""
        rendered = environment.read(self.scope.environment(vm))
        nics = [nic.split(",") for nic in rendered.get("QSYSD_NICS", "").split(";") if nic]
        return Summary(
            name=vm,
            memory_mib=environment.number(rendered.get("QSYSD_MEMORY_MIB")),
            cpus=environment.number(rendered.get("QSYSD_CPUS")),
            image=rendered.get("QSYSD_IMAGE") or None,
            addresses=tuple(nic[-1] for nic in nics if nic[-1] != "-"),
            digest=rendered.get("QSYSD_DIGEST") or None,
            disks=environment.disks(rendered.get("QSYSD_DISKS")),
            image_digest=rendered.get("QSYSD_IMAGE_DIGEST", ""),
        )

    # what a VM was started with

    def started(self, vm: str) -> Started | None:
        """Return what a running VM was started with; None if nothing was recorded."""
        data = read_bytes(self.scope.started_record(vm))
        if data is None:
            return None
        text = data.decode("utf-8", "replace")
        recorded = environment.variables(text)
        return Started(
            digest=text.partition("\n")[0],
            memory_mib=environment.number(recorded.get("QSYSD_MEMORY_MIB")),
            cpus=environment.number(recorded.get("QSYSD_CPUS")),
            accelerator=recorded.get("QSYSD_ACCELERATOR", ""),
            ssh_answered=recorded.get(SSH_ANSWERED) == "1",
        )

    def record_ssh_answer(self, vm: str) -> None:
        """Record that the guest of a running VM has answered on SSH. Errors are ignored."""
        with suppress(OSError):
            file = os.open(
                self.scope.started_record(vm), os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            try:
                os.write(file, f"{SSH_ANSWERED}=1\n".encode())
            finally:
                os.close(file)

"""Definitions on disk, and what is rendered from them.

Locks are in host.locks; this module takes none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from qsysd.errors import InvalidError, NotFoundError, QsysdError
from qsysd.files import digest, hint, make_directory, read_bytes, read_text, write_atomic
from qsysd.names import in_order
from qsysd.paths import DROP_IN_MARK, SEED_MARK, UNIT_PREFIX, Scope, is_name

if TYPE_CHECKING:
    from qsysd.model.network import NetworkSpec
    from qsysd.model.nic import Nic
    from qsysd.model.vm import Defaults, VMSpec
    from qsysd.render import Rendered


# Bytes read of an environment file at once: the variables before QEMU_ARGS are hardly ever more.
_HEAD = 4096
# ECMA-119: the application identifier of the primary volume descriptor, which is in sector 16.
_SEED_MARK_OFFSET = 16 * 2048 + 574
_SEED_MARK_LENGTH = 128


SSH_ANSWERED = "QSYSD_SSH_ANSWERED"


class Summary(NamedTuple):
    """What a list shows of a VM, read from its environment file: no YAML, 100 VMs in a few milliseconds."""

    name: str
    memory_mib: int | None
    cpus: int | None
    image: str | None
    addresses: tuple[str, ...]
    digest: str | None
    disks: int = 0
    image_digest: str = ""


class Started(NamedTuple):
    """What a VM was started with: None and "" where its unit's first step was of an older version.

    ssh_answered: whether the guest's SSH server has answered since then.
    """

    digest: str
    memory_mib: int | None
    cpus: int | None
    accelerator: str
    ssh_answered: bool = False


class Claims(NamedTuple):
    """What a VM has that no other may have too, the VMs that it waits for, and its memory."""

    name: str
    uuid: str
    nics: tuple[Nic, ...]
    depends_on: tuple[str, ...]
    memory_mib: int


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


class Store:
    """The definitions of a scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def names(self) -> list[str]:
        """Return the names of all VMs in their natural order. Raises QsysdError if it may not look."""
        return self._names(self.scope.definitions_dir)

    def network_names(self) -> list[str]:
        """Return the names of all networks in their natural order."""
        return self._names(self.scope.networks_dir)

    def _names(self, directory: str) -> list[str]:
        try:
            entries = os.listdir(directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise QsysdError(f"{directory} cannot be read: {error.strerror}", hint=hint(error)) from error
        names = (entry.removesuffix(".yaml") for entry in entries if entry.endswith(".yaml"))
        # Editors leave other files beside a definition (`.#web1.yaml`).
        return in_order(name for name in names if is_name(name))

    def undefined(self) -> list[str]:
        """Return the names of VMs of which something is on disk but no definition, in natural order."""
        found: set[str] = set()
        for directory, prefix, suffix in (
            (self.scope.definitions_dir, "", ".env"),
            (self.scope.vms_dir, "", ""),
            (self.scope.wants_dir, UNIT_PREFIX, ".service"),
        ):
            with suppress(OSError):
                entries = os.listdir(directory)
                found |= {entry.removeprefix(prefix).removesuffix(suffix) for entry in entries
                          if entry.startswith(prefix) and entry.endswith(suffix)}  # fmt: skip
        return in_order(name for name in found - set(self.names()) if is_name(name))

    def exists(self, vm: str) -> bool:
        """Return whether a VM is defined, be its definition readable or not."""
        return is_name(vm) and os.path.lexists(self.scope.definition(vm))

    def require(self, vm: str) -> str:
        """Return the text of a VM's definition. Raises NotFoundError, QsysdError if it cannot be read."""
        # Only a name: `delete ../networks/default` must not find anything.
        text = read_text(self.scope.definition(vm)) if is_name(vm) else None
        if text is None and self.exists(vm):
            raise QsysdError(
                f"{self.scope.definition(vm)} cannot be read: a link to a file that does not exist"
            )
        if text is None and vm in self.undefined():
            raise NotFoundError(
                f"{vm} has no definition: {self.scope.definition(vm)} does not exist",
                hint=f"restore the file, or remove what is left of the VM: qsysd delete {vm}",
            )
        if text is None:
            raise NotFoundError(f"VM {vm!r} does not exist", hint=self._nearby(vm))
        return text

    def _nearby(self, vm: str) -> str:
        import difflib

        close = difflib.get_close_matches(vm, self.names(), 1)
        return f"did you mean {close[0]}?" if close else "qsysd list shows the VMs of this host"

    def load(self, vm: str) -> VMSpec:
        """Return a VM's spec. Raises NotFoundError, and InvalidError with all that is wrong in the file."""
        from qsysd.config import load

        return load.parse_vm(self.require(vm), self.scope.definition(vm), name=vm, defaults=self.defaults())

    def claims(self, *, but: str) -> list[Claims]:
        """Return what all VMs but one claim, 1000 of them within 50 ms: most need no YAML.

        A VM whose definition is broken at the moment keeps what it had.
        """
        return [self._claims(name) for name in self.names() if name != but]

    def _claims(self, vm: str) -> Claims:
        text = self._rendered_head(vm)
        if self._is_changed(vm, text):
            try:
                spec = self.load(vm)
            except QsysdError:
                pass  # what was rendered from it last holds
            else:
                return Claims(vm, spec.uuid, spec.nics, spec.depends_on, spec.memory_mib)
        return Claims(
            name=vm,
            uuid=_variable(text, "QSYSD_UUID"),
            nics=_nics(_variable(text, "QSYSD_NICS")),
            depends_on=_names(text),
            memory_mib=_number(_variable(text, "QSYSD_MEMORY_MIB")) or 0,
        )

    def depends_on(self, vm: str) -> tuple[str, ...]:
        """Return the VMs after which a VM starts; none for one that does not exist."""
        text = self._rendered_head(vm)
        if self._is_changed(vm, text):
            return self._claims(vm).depends_on
        return _names(text)

    def defaults(self) -> Defaults:
        """Return the host's defaults. Raises InvalidError."""
        from qsysd.config import load

        return load.parse_defaults(read_text(self.scope.defaults_file) or "", self.scope.defaults_file)

    def load_network(self, network: str) -> NetworkSpec:
        """Return a network's spec. Raises NotFoundError, InvalidError."""
        from qsysd.config import load

        path = self.scope.network_definition(network)
        text = read_text(path) if is_name(network) else None
        if text is None:
            known = ", ".join(self.network_names())
            raise NotFoundError(
                f"network {network!r} does not exist",
                hint=f"the networks of this host: {known}"
                if known
                else "qsysd setup makes the network 'default'",
            )
        return load.parse_network(text, path, name=network)

    def write_definition(self, spec: VMSpec) -> None:
        """Write a VM's definition."""
        from qsysd.config import dump

        write_atomic(self.scope.definition(spec.name), dump.dump_vm(spec), 0o600)

    def rendered(self, vm: str, rendered: Rendered) -> Iterator[tuple[str, str, int]]:
        """Yield path, text and mode of each text file of a rendering, in the order to write them.

        The environment file is the last: it names what the others must be (`is_stale`).
        """
        yield self.scope.drop_in(vm), rendered.drop_in, 0o644
        yield self.scope.environment(vm), rendered.environment, 0o600

    def differences(self, vm: str, rendered: Rendered) -> list[str]:
        """Return the paths whose contents are not what the definition renders to; the seed's comes first."""
        found = [self.scope.seed(vm)] if rendered.seed and self.seed_digest(vm) != rendered.seed else []
        files = self.rendered(vm, rendered)
        return found + [path for path, text, _ in files if read_bytes(path) != text.encode()]

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

        By digests: a file restored with an old time stamp is noticed.
        """
        text = self._rendered_head(vm)
        if not os.path.exists(self.scope.definition(vm)):
            return False
        expected_seed = _variable(text, "QSYSD_SEED")
        return (
            self._is_changed(vm, text)
            or self._drop_in_mark(vm) != _variable(text, "QSYSD_EXPECTED_DROP_IN")
            or (expected_seed != "" and self.seed_digest(vm) != expected_seed)
        )

    def is_changed_by_hand(self, vm: str) -> bool:
        """Return whether a VM's definition is another than the one that was rendered last, or is new.

        A rendering of an older version does not tell; then the answer is no.
        """
        text = self._rendered_head(vm)
        return not text or (_variable(text, "QSYSD_DEFINITION") != "" and self._is_changed(vm, text))

    def _is_changed(self, vm: str, rendered_head: str) -> bool:
        """Return whether a definition exists from which an environment file was not rendered."""
        definition = read_bytes(self.scope.definition(vm))
        return definition is not None and _variable(rendered_head, "QSYSD_DEFINITION") != digest(definition)

    def _drop_in_mark(self, vm: str) -> str:
        """Return the digest that the VM's drop-in carries; "" for none."""
        text = (read_bytes(self.scope.drop_in(vm)) or b"").decode("utf-8", "replace")
        return _variable(text, f"Environment={DROP_IN_MARK}")

    def seed_digest(self, vm: str) -> str | None:
        """Return the digest of the documents that the VM's seed was built from; None without such a seed."""
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

    def rendered_nics(self, vm: str) -> tuple[Nic, ...] | None:
        """Return the NICs in a VM's environment file, which its definition may have lost; None without it."""
        text = self._rendered_head(vm)
        return _nics(_variable(text, "QSYSD_NICS")) if text else None

    def summary(self, vm: str) -> Summary:
        """Return what a list shows of a VM; with a missing or broken environment file only its name."""
        text = self._rendered_head(vm)
        nics = [nic.split(",") for nic in _variable(text, "QSYSD_NICS").split(";") if nic]
        return Summary(
            name=vm,
            memory_mib=_number(_variable(text, "QSYSD_MEMORY_MIB")),
            cpus=_number(_variable(text, "QSYSD_CPUS")),
            image=_variable(text, "QSYSD_IMAGE") or None,
            addresses=tuple(nic[-1] for nic in nics if nic[-1] != "-"),
            digest=_variable(text, "QSYSD_DIGEST") or None,
            disks=_number(_variable(text, "QSYSD_DISKS")) or 0,
            image_digest=_variable(text, "QSYSD_IMAGE_DIGEST"),
        )

    def started(self, vm: str) -> Started | None:
        """Return what a VM that runs was started with, None where nothing was recorded."""
        data = read_bytes(self.scope.started_record(vm))
        if data is None:
            return None
        text = data.decode("utf-8", "replace")
        return Started(
            digest=text.partition("\n")[0],
            memory_mib=_number(_variable(text, "QSYSD_MEMORY_MIB")),
            cpus=_number(_variable(text, "QSYSD_CPUS")),
            accelerator=_variable(text, "QSYSD_ACCELERATOR"),
            ssh_answered=_variable(text, SSH_ANSWERED) == "1",
        )

    def record_ssh_answer(self, vm: str) -> None:
        """Record that the guest of a running VM has answered on SSH; quiet if nothing can be recorded."""
        with suppress(OSError):
            file = os.open(
                self.scope.started_record(vm), os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            try:
                os.write(file, f"{SSH_ANSWERED}=1\n".encode())
            finally:
                os.close(file)

    def _rendered_head(self, vm: str) -> str:
        """Return an environment file up to QEMU's arguments; "" without one that can be read.

        A list reads 100 of them, a create beside 1000 VMs all.
        """
        try:
            file = os.open(self.scope.environment(vm), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            data = os.read(file, _HEAD)
            while b"\nQEMU_ARGS=" not in data and (more := os.read(file, _HEAD)):
                data += more
        except OSError:  # a directory
            return ""
        finally:
            os.close(file)
        return data.partition(b"\nQEMU_ARGS=")[0].decode("utf-8", "replace")


def _variable(text: str, name: str) -> str:
    """Return a QSYSD_ variable of an environment file, one that stands on a line of its own; "" for none."""
    start = text.find(f"\n{name}=")
    if start < 0:
        return ""
    start += len(name) + 2
    end = text.find("\n", start)
    return text[start : end if end >= 0 else len(text)].strip('"')


def _names(text: str) -> tuple[str, ...]:
    """Return the VMs that QSYSD_DEPENDS_ON names."""
    names = _variable(text, "QSYSD_DEPENDS_ON")
    return tuple(names.split(":")) if names else ()


def _nics(text: str) -> tuple[Nic, ...]:
    """Return the NICs that QSYSD_NICS describes, none where it is damaged."""
    if not text:
        return ()
    from qsysd.model.nic import Nic
    from qsysd.runtime.ports import parse_ports

    try:
        ports = parse_ports(text)
    except InvalidError:
        return ()
    return tuple(Nic(f"net{index}", port.network, port.mac, port.address) for index, port in enumerate(ports))

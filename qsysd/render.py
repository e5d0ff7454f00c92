"""The texts of unit, drop-in and environment file of a VM, and of the files of a network.

The only user of jinja2. Every value in a template passes a filter that quotes it for its place:

env_value   a value in an EnvironmentFile (systemd.exec(5): within "…" only \\" \\\\ \\` \\$ are special)
words       an argument list as systemd splits an unbraced `$VARIABLE` (systemd.service(5), "Command lines")
unit_value  a value in a unit file, where % begins a specifier
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jinja2

from qsysd import interface_names, paths, seed
from qsysd.config import dump
from qsysd.digests import digest
from qsysd.model.network import NetworkSpec
from qsysd.model.vm import Accel, VMSpec
from qsysd.paths import Scope
from qsysd.qemu import argv, machine
from qsysd.qemu.nic import ports
from qsysd.runtime.ports import format_ports

TEMPLATES = os.path.join(os.path.dirname(__file__), "templates")

# Seconds after the timeout of the VM: for QMP `quit` (10 s) and for SIGTERM by systemd.
STOP_BACKSTOP = 30

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:=,@%+^-]+")
_OPTION = re.compile(r"-[a-z]+")


def env_value(value: object) -> str:
    """Return a value for `NAME=` in an EnvironmentFile. Raise ValueError for control characters."""
    text = str(value)
    if "\0" in text or re.search(r"[\x01-\x08\x0b-\x1f\x7f]", text):
        raise ValueError("control characters cannot be written to an EnvironmentFile")
    if re.fullmatch(r"[A-Za-z0-9_./:=,;@%+-]*", text):
        return text
    return '"' + re.sub(r'(["\\`$])', r"\\\1", text) + '"'


def words(arguments: Iterable[str]) -> str:
    """Return arguments as systemd splits `$VARIABLE`, one option per line. Raise ValueError."""
    lines: list[str] = []
    for argument in arguments:
        if "\n" in argument:
            raise ValueError("an argument cannot contain a line break")
        if _PLAIN_WORD.fullmatch(argument):
            word = argument
        else:
            word = '"' + re.sub(r'(["\\])', r"\\\1", argument) + '"'
        if lines and not _OPTION.fullmatch(argument):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def unit_value(value: str) -> str:
    """Return a value for a unit file: specifiers are doubled."""
    return value.replace("%", "%%")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the output is not HTML; each place has a separate filter
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(env_value=env_value, words=words, unit_value=unit_value)
    return environment


def template(file: str, /, **variables: object) -> str:
    """Return the text of a template. Raise jinja2.UndefinedError if a variable is missing."""
    return _environment().get_template(file).render(**variables)


@dataclass(frozen=True)
class Rendered:
    """The texts rendered from the definition of a VM.

    digest: of both texts; a running VM with another digest needs a restart. seed: the digest of the documents
    of the seed, "" without a seed.
    """

    environment: str
    drop_in: str
    digest: str
    seed: str


def unit(scope: Scope, *, systemd_version: int, helper: Sequence[str], after_stop: str, qemu: str) -> str:
    """Return qemu-vm@.service. helper, after_stop, qemu: command, shell script, program, all absolute."""
    return template(
        "qemu-vm@.service.j2",
        scope=scope,
        systemd_version=systemd_version,
        helper=" ".join(helper),
        after_stop=after_stop,
        qemu=qemu,
    )


def _network_units(spec: VMSpec) -> list[str]:
    """Return the units that a VM wants; it starts after them and stops before them."""
    names: list[str] = []
    for network in dict.fromkeys(nic.network for nic in spec.nics):
        names += [paths.network_unit(network), paths.dhcp_unit(network)]
    return names


def _disk_names(spec: VMSpec) -> str:
    """Return the names of a VM's disks; only their number where they are disk0, disk1 and so on.

    store.environment reads both. Versions before named disks wrote the number: with it, an upgrade
    changes no rendering, and no VM waits for a restart.
    """
    names = [disk.name for disk in spec.effective_disks]
    numbered = [f"disk{number}" for number in range(len(names))]
    return str(len(names)) if names == numbered else ":".join(names)


def vm(spec: VMSpec, scope: Scope, definition: str | None = None) -> Rendered:
    """Return the environment file and the drop-in of a VM.

    definition: the text from which the spec was read; by default the text of `dump.dump_vm`.
    """
    drop_in = _drop_in(spec, scope)
    drop_in_digest = digest(drop_in.encode())
    drop_in = drop_in.replace("@DIGEST@", drop_in_digest, 1)
    environment = _vm_environment(spec, scope, drop_in_digest)
    # Without the digests of definition and seed: a comment or an SSH key requires no restart.
    whole = digest((environment + drop_in).encode())
    seed_digest = seed.digest(spec)
    text = dump.dump_vm(spec) if definition is None else definition
    for mark, value in (("DIGEST", whole), ("DEFINITION", digest(text.encode())), ("SEED", seed_digest)):
        environment = environment.replace(f"@{mark}@", value, 1)
    return Rendered(environment=environment, drop_in=drop_in, digest=whole, seed=seed_digest)


def _boot_files(spec: VMSpec) -> list[str]:
    """Return the kernel and the initrd that QEMU boots, if the definition has them."""
    return [file for file in (spec.kernel.path, spec.kernel.initrd) if file] if spec.kernel else []


def _drop_in(spec: VMSpec, scope: Scope) -> str:
    """Return the drop-in of a VM, with a mark in place of its digest."""
    return template(
        "vm.conf.j2",
        definition=scope.definition(spec.name),
        unit=paths.unit(spec.name),
        networks=_network_units(spec),
        # Ordering only: with Wants=, a restart after a crash would start a dependency that was stopped.
        dependencies=[paths.unit(other) for other in spec.depends_on],
        stop_backstop=spec.stop_timeout + STOP_BACKSTOP,
        memory_limit_mib=spec.memory_limit_mib,
        boot_files=_boot_files(spec),
        mark=paths.DROP_IN_MARK,
    )


def _vm_environment(spec: VMSpec, scope: Scope, drop_in_digest: str) -> str:
    """Return the environment file of a VM, with marks in place of the digests of definition and seed."""
    pinned = spec.accel is not Accel.AUTO
    return template(
        "vm.env.j2",
        definition=scope.definition(spec.name),
        name=spec.name,
        nics=format_ports(ports(spec)),
        stop_timeout=spec.stop_timeout,
        read_files=":".join(_boot_files(spec)),
        memory_mib=spec.memory_mib,
        cpus=spec.cpus,
        image=spec.image or "",
        image_digest=spec.image_digest or "",
        disks=_disk_names(spec),
        uuid=spec.uuid,
        depends_on=":".join(spec.depends_on),
        drop_in_digest=drop_in_digest,
        accelerator=machine.accelerator(spec.accel) if pinned else None,
        processor=machine.processor(spec.accel, spec.cpu) if pinned or spec.cpu else None,
        qemu_args=argv.build(spec, scope),
    )


def network_files(spec: NetworkSpec, scope: Scope) -> dict[str, str]:
    """Return the text of each file that is rendered from the definition of a network, by path."""
    subnet = ipaddress.IPv4Network(spec.subnet)
    variables = {
        "definition": scope.network_definition(spec.name),
        "network": spec.name,
        "kind": spec.kind.value,
        "host_access": spec.host_access,
        "bridge": interface_names.bridge(spec.name),
        "subnet": spec.subnet,
        "gateway": str(subnet[1]),
        "prefix_length": subnet.prefixlen,
        "rules": scope.network_rules(spec.name),
        "hosts_dir": scope.dhcp_hosts_dir(spec.name),
        "leases": scope.leases(spec.name),
        "domain": paths.domain(spec.name),
    }
    return {
        scope.network_environment(spec.name): template("network.env.j2", **variables),
        scope.network_rules(spec.name): template("network.nft.j2", **variables),
        scope.dnsmasq_config(spec.name): template("dnsmasq.conf.j2", **variables),
    }

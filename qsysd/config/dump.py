"""Model → YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsysd import values
from qsysd.errors import InvalidError
from qsysd.model.network import NetworkSpec
from qsysd.model.vm import VMSpec


def dump_vm(spec: VMSpec) -> str:
    """Return the definition of a VM, with what it has and without what it lacks."""
    limit = spec.memory_limit_mib
    document: dict[str, Any] = {
        "name": spec.name,
        "uuid": spec.uuid,
        "machine": spec.machine,
        "memory": values.format_size(spec.memory_mib * 1024**2),
        "memory_limit": values.format_size(limit * 1024**2) if limit else None,
        "cpus": spec.cpus,
        "cpu": spec.cpu,
        "accel": spec.accel.value,
        "image": spec.image,
        "image_digest": spec.image_digest,
        "disks": [
            {"name": disk.name, **({"size": values.format_size(disk.size)} if disk.size else {})}
            for disk in spec.disks
        ],
        "nics": [
            {
                "name": nic.name,
                "network": nic.network,
                "mac": nic.mac,
                **({"address": nic.address} if nic.address else {}),
            }
            for nic in spec.nics
        ],
        "kernel": spec.kernel.path if spec.kernel else None,
        "initrd": spec.kernel.initrd if spec.kernel else None,
        "append": spec.kernel.append if spec.kernel else None,
        "seed": spec.seed,
        "user": spec.user,
        "ssh_keys": list(spec.ssh_keys),
        "depends_on": list(spec.depends_on),
        "stop_timeout": f"{spec.stop_timeout}s",
        "qemu_args": list(spec.qemu_args),
    }
    # `nics: []` is a VM without a network card; without the key it would get one.
    return dump(
        {key: value for key, value in document.items() if key == "nics" or value not in (None, [], "")}
    )


def dump_network(spec: NetworkSpec) -> str:
    """Return the definition of a network."""
    return dump(vars(spec) | {"kind": spec.kind.value})


def dump(document: Mapping[str, Any]) -> str:
    """Return a document as YAML, in the order of its keys. Raises InvalidError for what is not UTF-8."""
    import yaml

    try:
        text: str = yaml.dump(
            dict(document),
            Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
            sort_keys=False,
            default_flow_style=False,
            allow_unicode=True,
            width=1000,
        )
    except UnicodeError as error:
        raise InvalidError("a value is not UTF-8 text", hint="write it in a file, with --file") from error
    return text

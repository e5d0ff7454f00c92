"""The cloud-init NoCloud disk of a VM: user-data, meta-data and network-config.

Specification: https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

import os
from typing import Any

from qsysd import digests, files, paths
from qsysd.config.nodes import yaml_library
from qsysd.errors import QsysdError
from qsysd.model.vm import VMSpec
from qsysd.paths import Scope
from qsysd.runtime import spawn, trees

VOLUME_LABEL = "cidata"


def documents(spec: VMSpec) -> dict[str, str]:
    """Return the files of a seed by name.

    The instance ID is the UUID of the VM: a VM that is created again under the same name is a new instance.
    NICs are matched by MAC: their names in the guest do not matter.
    """
    user_data: dict[str, Any] = {
        "hostname": spec.name,
        "manage_etc_hosts": True,
        "ssh_pwauth": False,
    }
    if spec.ssh_keys:
        user_data["ssh_authorized_keys"] = list(spec.ssh_keys)
    network = {
        "version": 2,
        "ethernets": {
            f"nic{index}": {"match": {"macaddress": nic.mac}, "dhcp4": True}
            for index, nic in enumerate(spec.nics)
        },
    }
    return {
        "user-data": "#cloud-config\n" + _dump(user_data),
        "meta-data": _dump({"instance-id": spec.uuid, "local-hostname": spec.name}),
        "network-config": _dump(network),
    }


def digest(spec: VMSpec) -> str:
    """Return the digest of the documents of a seed, its application identifier; "" without a seed."""
    return digests.digest("\0".join(documents(spec).values()).encode()) if spec.seed else ""


def _dump(document: dict[str, Any]) -> str:
    yaml = yaml_library()
    text: str = yaml.dump(
        document, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, width=10000
    )
    return text


def write(spec: VMSpec, scope: Scope) -> None:
    """Write the seed disk of a VM, readable only for its owner. The caller holds the VM's exclusive lock.

    Raise QsysdError with the error message of the tool; the old disk stays in place then.
    """
    # Not a temporary directory of the tool: `delete` must find what a killed command left.
    directory = scope.seed_scratch(spec.name)
    trees.remove(directory)
    try:
        contents = os.path.join(directory, "files")
        os.makedirs(os.path.dirname(directory), mode=0o700, exist_ok=True)
        os.makedirs(contents, mode=0o700)
        for name, text in documents(spec).items():
            with open(os.path.join(contents, name), "w", encoding="utf-8") as file:
                file.write(text)
        disk = os.path.join(directory, "seed.iso")
        spawn.run(
            ["genisoimage", "-quiet", "-output", disk, "-volid", VOLUME_LABEL,
             "-appid", f"{paths.SEED_MARK}{digest(spec)}", "-joliet", "-rock", contents]
        )  # fmt: skip
        with open(disk, "rb") as file:
            files.write_atomic(scope.seed(spec.name), file.read(), 0o600)
    except OSError as error:
        raise QsysdError(f"{directory} cannot be written: {error.strerror}") from error
    finally:
        trees.remove(directory)

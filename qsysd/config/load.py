"""YAML → defaults → validation → model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import chain, count
from typing import Any, TypeVar

from qsysd import image_names, values
from qsysd.config.reader import (
    _CPU,
    _MACHINE,
    CPUS_MAXIMUM,
    MEMORY_MARGIN_MIB,
    Problems,
    Section,
    _address,
    _boolean,
    _choice,
    _compose,
    _device_name,
    _disk_size,
    _duration,
    _integer,
    _is_null,
    _mac,
    _matching,
    _memory_mib,
    _name,
    _parse,
    _plain_path,
    _subnet,
    _text,
)
from qsysd.errors import InvalidError
from qsysd.model.disk import Disk
from qsysd.model.network import NetworkKind, NetworkSpec
from qsysd.model.nic import Nic
from qsysd.model.vm import Accel, Defaults, Kernel, VMSpec

Device = TypeVar("Device", Disk, Nic)

VM_KEYS = (
    "name", "uuid", "machine", "memory", "memory_limit", "cpus", "cpu", "accel", "image", "image_digest",
    "disks", "nics", "kernel", "initrd", "append", "seed", "user", "ssh_keys", "depends_on", "stop_timeout",
    "qemu_args",
)  # fmt: skip


def parse_vm(text: str, source: str, *, name: str | None = None, defaults: Defaults | None = None) -> VMSpec:
    """Return the spec of a VM's definition.

    source: the file's name for messages, empty for a command line. name: what the file's name
    says, when it must agree.
    Keys that are missing come from `defaults`; `uuid` and `machine` must be there once a VM is made
    and are empty strings until then. Raises InvalidError with all problems.
    """
    defaults = defaults or Defaults()
    problems = Problems(source)
    root = Section(_parse(text, source), "", problems, VM_KEYS)

    def disk(node: Any, path: str) -> Disk:
        section = Section(node, path, problems, ("name", "size"))
        return Disk(
            name=section.value("name", _device_name, ""), size=section.value("size", _disk_size, None)
        )

    def nic(node: Any, path: str) -> Nic:
        section = Section(node, path, problems, ("name", "network", "mac", "address"))
        return Nic(
            name=section.value("name", _device_name, ""),
            network=section.value("network", _name, defaults.network),
            mac=section.value("mac", _mac, ""),
            address=section.value("address", _address, None),
        )

    spec = VMSpec(
        name=root.required("name", _name, name or "invalid"),
        uuid=root.value("uuid", _matching(values.UUID, "a UUID"), ""),
        machine=root.value("machine", _matching(_MACHINE, "a machine type"), ""),
        memory_mib=root.value("memory", _memory_mib, defaults.memory_mib),
        memory_limit_mib=root.value("memory_limit", _memory_mib, None),
        cpus=root.value("cpus", _integer(1, CPUS_MAXIMUM), defaults.cpus),
        cpu=root.value("cpu", _matching(_CPU, "a CPU model"), None),
        accel=root.value("accel", _choice(Accel), defaults.accel),
        image=root.value("image", lambda node: image_names.checked(_text(node)), None),
        image_digest=root.value("image_digest", _matching(values.SHA256, "a SHA-256 digest"), None),
        disks=_named(root.each("disks", disk), "disk"),
        nics=_named(root.each("nics", nic), "net")
        if root.present("nics")
        else (Nic("net0", defaults.network, ""),),
        kernel=_kernel(root, problems),
        seed=root.value("seed", _boolean, root.present("image")),
        user=root.value("user", _matching(values.USER, "a user name"), None),
        ssh_keys=root.each("ssh_keys", lambda node, _: _matching(values.SSH_KEY, "an SSH public key")(node)),
        depends_on=root.each("depends_on", lambda node, _: _name(node)),
        stop_timeout=root.value("stop_timeout", _duration, defaults.stop_timeout),
        qemu_args=root.each("qemu_args", lambda node, _: _text(node)),
    )
    _check_vm(spec, root, problems, name)
    problems.check()
    return spec


def _kernel(root: Section, problems: Problems) -> Kernel | None:
    """Return the kernel of direct boot, whose keys are among the VM's own."""
    if root.present("kernel"):
        return Kernel(
            path=root.value("kernel", _plain_path, ""),
            initrd=root.value("initrd", _plain_path, None),
            append=root.value("append", _text, ""),
        )
    for key in ("initrd", "append"):
        if root.present(key):
            problems.add(root.items[key], key, "needs 'kernel' as well")
    return None


def _named(devices: tuple[Device, ...], prefix: str) -> tuple[Device, ...]:
    """Return the devices, each with a name: `disk0` for the first disk, where its name is not given.

    A number that another device has as a name is left out, so that a name in a definition stays valid
    where a device without one is added.
    """
    taken = {device.name for device in devices}
    free = (name for number in count() if (name := f"{prefix}{number}") not in taken)
    return tuple(device if device.name else replace(device, name=next(free)) for device in devices)


def _check_vm(spec: VMSpec, root: Section, problems: Problems, name: str | None) -> None:
    """Note what no single key can tell."""
    _check_name(spec.name, root, problems, name)
    least = spec.memory_mib + MEMORY_MARGIN_MIB
    if spec.memory_limit_mib is not None and spec.memory_limit_mib < least:
        problems.add(
            root.items["memory_limit"], "memory_limit", f"too small: at least {least}M, for QEMU itself"
        )
    if spec.name in spec.depends_on:
        problems.add(root.items["depends_on"], "depends_on", "a VM cannot depend on itself")
    disks = root.items["disks"].value if root.present("disks") else None
    if root.items and not (root.present("image") or root.present("kernel") or disks):
        problems.add(root.node, "", "nothing to boot from: give 'image', 'kernel' or 'disks'")
    names = {"disks": [disk.name for disk in spec.disks], "nics": [nic.name for nic in spec.nics]}
    count_of = Counter(chain(*names.values()))
    for key, own in names.items():
        for taken in dict.fromkeys(name for name in own if count_of[name] > 1):
            problems.add(root.items.get(key, root.node), key, f"two devices have the name {taken!r}")
    macs = [nic.mac for nic in spec.nics if nic.mac]
    addresses = [(nic.network, nic.address) for nic in spec.nics if nic.address]
    for what, found in (("MAC address", macs), ("address", addresses)):
        if len(set(found)) != len(found):
            problems.add(root.items["nics"], "nics", f"two network cards have the same {what}")


def _check_name(name: str, root: Section, problems: Problems, file: str | None) -> None:
    if file is not None and name != file:
        problems.add(root.items.get("name", root.node), "name", f"{name!r} is not the file's name, {file!r}")


def parse_network(text: str, source: str, *, name: str | None = None) -> NetworkSpec:
    """Return the spec of a network's definition. Raises InvalidError with all problems."""
    problems = Problems(source)
    root = Section(_parse(text, source), "", problems, ("name", "kind", "subnet", "host_access"))
    spec = NetworkSpec(
        name=root.required("name", _name, name or "invalid"),
        kind=root.value("kind", _choice(NetworkKind), NetworkKind.NAT),
        subnet=root.required("subnet", _subnet, ""),
        host_access=root.value("host_access", _boolean, False),
    )
    _check_name(spec.name, root, problems, name)
    problems.check()
    return spec


def parse_defaults(text: str, source: str) -> Defaults:
    """Return the host's defaults; a file of comments only is fine. Raises InvalidError."""
    node = _compose(text, source)
    if node is None:
        return Defaults()
    problems = Problems(source)
    root = Section(node, "", problems, ("accel", "memory", "cpus", "disk_size", "network", "stop_timeout"))
    plain = Defaults()
    defaults = Defaults(
        accel=root.value("accel", _choice(Accel), plain.accel),
        memory_mib=root.value("memory", _memory_mib, plain.memory_mib),
        cpus=root.value("cpus", _integer(1, CPUS_MAXIMUM), plain.cpus),
        disk_size=root.value("disk_size", _disk_size, plain.disk_size),
        network=root.value("network", _name, plain.network),
        stop_timeout=root.value("stop_timeout", _duration, plain.stop_timeout),
    )
    problems.check()
    return defaults


def load_plain(text: str, source: str) -> Any:
    """Return a definition as plain values; as in a spec, all but whole numbers, true and false is text."""
    return _plain(_parse(text, source), source, ())


def _plain(node: Any, source: str, above: tuple[Any, ...]) -> Any:
    if node in above:
        line = node.start_mark.line + 1
        raise InvalidError(f"{source}:{line}: a list or a mapping that holds itself")
    above = (*above, node)
    if node.id == "sequence":
        return [_plain(item, source, above) for item in node.value]
    if node.id == "mapping":
        return {str(key.value): _plain(value, source, above) for key, value in node.value}
    text = str(node.value)
    if _is_null(node):
        return None
    if node.style:  # in quotes
        return text
    if re.fullmatch("0|[1-9][0-9]{0,18}", text):
        return int(text)
    return {"true": True, "false": False}.get(text, text)

"""Checks across the fields of a definition."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from qsysd.config.reader import Section
from qsysd.model.vm import BOOT_KEYS, VMSpec

MEMORY_MARGIN_MIB = 256  # what QEMU needs in addition to the guest's memory


def check_vm(spec: VMSpec, root: Section) -> None:
    """Record the problems between the fields of a VM. root: the definition that the spec was read from."""
    least = spec.memory_mib + MEMORY_MARGIN_MIB
    if spec.memory_limit_mib is not None and spec.memory_limit_mib < least:
        root.add("memory_limit", f"too small: at least {least}M, for QEMU itself")
    if spec.name in spec.depends_on:
        root.add("depends_on", "a VM cannot depend on itself")
    if root.is_mapping and not any(_has_value(root, key) for key in BOOT_KEYS):
        *others, last = map(repr, BOOT_KEYS)
        root.add("", f"nothing to boot from: give {', '.join(others)} or {last}")
    _check_device_names(spec, root)
    macs = [nic.mac for nic in spec.nics if nic.mac]
    addresses = [(nic.network, nic.address) for nic in spec.nics if nic.address]
    for what, found in (("MAC address", macs), ("address", addresses)):
        if len(set(found)) != len(found):
            root.add("nics", f"two NICs have the same {what}")


def _has_value(root: Section, key: str) -> bool:
    """Return whether a key has a value that is not an empty list."""
    return key in root.items and root.items[key].items() != []


def _check_device_names(spec: VMSpec, root: Section) -> None:
    """Record names that two devices have: QEMU's ids are built from them."""
    names = {"disks": [disk.name for disk in spec.effective_disks], "nics": [nic.name for nic in spec.nics]}
    count_of = Counter(chain(*names.values()))
    for key, own in names.items():
        if key not in root.items:
            continue  # numbered; the key of the other device is reported
        for name in dict.fromkeys(name for name in own if count_of[name] > 1):
            root.add(key, f"two devices have the name {name!r}")

"""What an edit changes, and when each change takes effect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from samples import KEY, MAC, UUID, any_vms, vm

from qsysd.config.changes import Changed, changed_fields
from qsysd.model.boot import Kernel
from qsysd.model.disk import Disk
from qsysd.model.field import Change
from qsysd.model.nic import Nic
from qsysd.model.vm import Accel

DISK, NIC = vm().disks[0], vm().nics[0]


def changes(**new: Any) -> list[Changed]:
    """Return what differs in a VM after some of its fields were replaced."""
    return changed_fields(vm(), vm(**new))


def test_a_spec_has_no_changes_from_itself() -> None:
    for spec in any_vms(20):
        assert changed_fields(spec, replace(spec)) == []


@pytest.mark.parametrize(
    ("new", "path", "change", "refused"),
    [
        ({"name": "web2"}, "name", Change.NEVER, True),
        ({"uuid": UUID.replace("5", "6")}, "uuid", Change.NEVER, True),
        ({"machine": "pc-q35-8.0"}, "machine", Change.RESTART, False),
        ({"memory_mib": 1024}, "memory", Change.RESTART, False),
        ({"memory_limit_mib": 2048}, "memory_limit", Change.RESTART, False),
        ({"cpus": 3}, "cpus", Change.RESTART, False),
        ({"cpu": "host"}, "cpu", Change.RESTART, False),
        ({"accel": Accel.KVM}, "accel", Change.RESTART, False),
        ({"image": "other"}, "image", Change.NEVER, True),
        ({"image": None}, "image", Change.NEVER, True),
        ({"image_digest": "f" * 64}, "image_digest", Change.REMOVE, True),
        ({"image_digest": None}, "image_digest", Change.REMOVE, False),
        ({"seed": False}, "seed", Change.NEVER, True),
        ({"user": "root"}, "user", Change.LIVE, False),
        ({"ssh_keys": (KEY, KEY)}, "ssh_keys", Change.FIRST_BOOT, False),
        ({"depends_on": ("db1",)}, "depends_on", Change.RESTART, False),
        ({"stop_timeout": 5}, "stop_timeout", Change.RESTART, False),
        ({"qemu_args": ("-S",)}, "qemu_args", Change.RESTART, False),
        ({"kernel": Kernel("/x")}, "kernel", Change.RESTART, False),
        ({"disks": ()}, "disks", Change.NEVER, True),
        ({"disks": (DISK, Disk("data", 1))}, "disks", Change.NEVER, True),
        ({"disks": (replace(DISK, name="root"),)}, "disks", Change.NEVER, True),
        ({"disks": (replace(DISK, size=1),)}, "disks[0].size", Change.NEVER, True),
        ({"nics": ()}, "nics", Change.RESTART, False),
        ({"nics": (NIC, Nic("lan", "lan", ""))}, "nics", Change.RESTART, False),
        ({"nics": (replace(NIC, mac=MAC.replace("5", "4")),)}, "nics[0].mac", Change.RESTART, False),
        ({"nics": (replace(NIC, network="lan"),)}, "nics[0].network", Change.RESTART, False),
        ({"nics": (replace(NIC, address=None),)}, "nics[0].address", Change.RESTART, False),
    ],
)
def test_a_changed_field_has_the_path_that_errors_have_and_its_time(
    new: dict[str, Any], path: str, change: Change, refused: bool
) -> None:
    (changed,) = changes(**new)
    assert (changed.path, changed.change, changed.is_refused) == (path, change, refused)


def test_all_changes_are_found_at_once_in_the_order_of_a_definition() -> None:
    found = changes(seed=False, image="other", nics=(replace(NIC, mac=""),), disks=(replace(DISK, size=1),))
    assert [changed.path for changed in found] == ["image", "disks[0].size", "nics[0].mac", "seed"]


def test_devices_are_compared_by_name_and_not_by_position() -> None:
    two = vm(nics=(Nic("net0", "a", MAC), Nic("net1", "b", MAC)))
    assert changed_fields(two, vm(nics=two.nics[1:])) == [Changed("nics", Change.RESTART)]
    more = vm(nics=(Nic("lan", "c", MAC), *two.nics))
    assert changed_fields(two, more) == [Changed("nics", Change.RESTART)]


def test_the_parts_of_a_kernel_are_compared_one_by_one() -> None:
    old, new = vm(kernel=Kernel("/x", "/y", "quiet")), vm(kernel=Kernel("/x", None, "debug"))
    assert [changed.path for changed in changed_fields(old, new)] == ["initrd", "append"]
    assert changed_fields(old, vm()) == [Changed("kernel", Change.RESTART, removed=True)]

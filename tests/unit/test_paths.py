"""Names of units, interfaces, sockets and locks: within their limits, and one's own."""

from __future__ import annotations

import itertools
import os
import re

import pytest

from qsysd import interface_names, paths
from qsysd.paths import Scope
from qsysd.runtime.ports import is_interface, is_tap

LONGEST = "x" * 28


def names(count: int = 300) -> list[str]:
    """Return VM names of all lengths that are as alike as possible."""
    found = []
    for number in range(count):
        length = 1 + number % 28
        tail = f"{number}"[:length]
        found.append(("a" * length)[: length - len(tail)] + tail if length > len(tail) else "a" * length)
    return sorted({name for name in found if name[0].isalpha()})


NICS = ["net0", "net9", "net10", "net31", "net999", "net1000", "net00", "net", "a", "lan", "x" * 15]
NICS.append("net" + "1" * 12)


@pytest.mark.parametrize("nic", NICS)
def test_interface_names_fit_and_are_unique(nic: str) -> None:
    taken = [interface_names.tap(name, nic) for name in names()]
    assert len(set(taken)) == len(names())
    for tap in taken:
        assert len(tap.encode()) <= paths.INTERFACE_NAME_MAX
        assert is_tap(tap)


def test_the_taps_of_a_vm_differ() -> None:
    for name in ("web1", LONGEST):
        nics = [*NICS, *(f"net{number}" for number in range(40) if f"net{number}" not in NICS)]
        assert len({interface_names.tap(name, nic) for nic in nics}) == len(nics)


def test_a_readable_name_is_not_the_digest_of_another_vm() -> None:
    numbered = [f"net{number}" for number in range(12)]
    short = {interface_names.tap(name, nic) for name in names() if len(name) < 11 for nic in numbered}
    long = {interface_names.tap(name, nic) for name in names() if len(name) > 11 for nic in numbered}
    assert not short & long


def test_the_taps_of_vms_with_names_alike_differ() -> None:
    vms = ["web", "web-1", "web-1-0", "web-lan", "web-lan-0", "web-net1", "w", "w-e", "w-e-b"]
    taken = [interface_names.tap(vm, nic) for vm in vms for nic in NICS]
    assert len(set(taken)) == len(taken)


def test_the_tap_of_a_nic_without_a_given_name_is_numbered() -> None:
    # As in versions before named devices: running VMs have them.
    assert interface_names.tap("web1", "net0") == "qv-web1-0"
    assert interface_names.tap("web1", "net12") == "qv-web1-12"
    assert interface_names.tap(LONGEST, "net0") == "qv_f3b439399a-0"
    assert interface_names.tap(LONGEST, "net10") == "qv_f3b439399-10"


def test_the_tap_of_a_named_nic_has_its_name_where_it_fits() -> None:
    assert interface_names.tap("web1", "lan") == "qv-web1-lan"
    assert interface_names.tap("database", "mgmt").startswith("qv_")
    assert interface_names.tap("database", "mgmt") != interface_names.tap("database", "mgmu")


def test_bridge_names() -> None:
    assert interface_names.bridge("default") == "qb-default"
    bridges = {interface_names.bridge(name) for name in names()}
    assert len(bridges) == len(names())
    assert all(len(bridge) <= paths.INTERFACE_NAME_MAX and is_interface(bridge) for bridge in bridges)
    assert not bridges & {interface_names.tap(name, nic) for name in names() for nic in NICS}


def test_a_name_is_what_the_rule_says() -> None:
    rule = re.compile(paths.NAME_RULE)
    texts = [
        "",
        "a",
        "-",
        "1",
        "A",
        "a-",
        "a1",
        "a_",
        "aA",
        "a\n",
        "a" * 28,
        "a" * 29,
        "é",
        "a/b",
        "..",
        "a\0",
    ]
    for text in texts:
        assert paths.is_name(text) is (rule.fullmatch(text) is not None), text
    for number in range(0x250):
        assert paths.is_name(chr(number)) is (rule.fullmatch(chr(number)) is not None)
        assert paths.is_name(f"a{chr(number)}") is (rule.fullmatch(f"a{chr(number)}") is not None)


def test_the_name_of_a_device_is_what_the_rule_says() -> None:
    rule = re.compile(paths.DEVICE_NAME_RULE)
    for text in ("", "a", "0", "A", "a0", "a-", "a_", "a.b", "a\n", "x" * 15, "x" * 16, "é", "a/", "a,b"):
        assert paths.is_device_name(text) is (rule.fullmatch(text) is not None), text


def test_the_names_of_disks() -> None:
    for disk in ("disk0", "disk12", "data", "x" * 15):
        assert paths.is_disk(os.path.basename(Scope().overlay("web1", disk)))
    for name in (
        ".qcow2",
        "disk0.qcow2.part",
        "X.qcow2",
        "1.qcow2",
        "x" * 16 + ".qcow2",
        "disk0",
        "seed.iso",
        "disk-1.qcow2",
        "\x1b[2Jdisk0.qcow2",
    ):
        assert not paths.is_disk(name)


def test_units() -> None:
    assert paths.unit("web1") == "qemu-vm@web1.service"
    assert paths.vm_of_unit("qemu-vm@web1.service") == "web1"
    assert paths.network_unit("lan") == "qsysd-network@lan.service"
    assert paths.dhcp_unit("lan") == "qsysd-dhcp@lan.service"


def test_sockets_of_the_longest_name_fit() -> None:
    for purpose in ("cli", "ready", "stop"):
        assert len(Scope().monitor(LONGEST, purpose)) <= paths.SOCKET_PATH_MAX
    assert len(Scope().console(LONGEST)) <= paths.SOCKET_PATH_MAX


def test_the_user_of_the_longest_name_fits() -> None:
    # utmp's limit, which systemd holds for DynamicUser= too
    assert len(f"qv-{LONGEST}") <= 31


def test_a_scope_can_be_moved_whole() -> None:
    here, there = Scope(), Scope("/srv/test")
    for attribute, path in vars(here).items():
        if attribute != "root":
            assert vars(there)[attribute] == "/srv/test" + path
            assert os.path.isabs(path)
    assert there.definition("web1") == "/srv/test/etc/qsysd/vms/web1.yaml"


def test_no_two_things_have_one_path() -> None:
    scope = Scope()
    methods = [
        scope.definition, scope.environment, scope.drop_in_dir, scope.drop_in, scope.vm_dir, scope.overlay,
        scope.seed,
        scope.console_log, scope.known_hosts, scope.runtime, scope.console, scope.started_record,
        scope.network_definition, scope.network_environment, scope.network_rules, scope.dnsmasq_config,
        scope.network_dir,
        scope.dhcp_hosts_dir, scope.leases, scope.image, scope.image_metadata, scope.root_dir,
    ]  # fmt: skip
    found = [method(name) for method in methods for name in ("default", "web1")]
    found += [scope.monitor("web1", purpose) for purpose in ("cli", "ready", "stop")]
    found += [scope.intent(name, verb) for name in ("default", "web1") for verb in ("create", "delete")]
    found += [scope.dhcp_host("default", "web1"), scope.overlay("web1", "data")]
    assert len(set(found)) == len(found)


# locks


def test_a_fixed_number_of_lock_files_serves_all_names() -> None:
    locks = {Scope().lock(name) for name in names()} | {Scope().lock(f"image:{name}") for name in names()}
    assert len(locks) <= 2 * 256 + 2
    assert {os.path.dirname(path) for path in locks} == {Scope().locks_dir}


def test_what_is_locked_inside_another_lock_never_is_that_lock() -> None:
    # create holds the VM's and the image's lock when it takes the addresses'; set-up holds its own
    # while it takes VMs': were two of them one file, the command would wait for itself
    everything = [f"vm{number}" for number in range(600)]
    scope = Scope()
    kinds = (
        {scope.lock(name) for name in [*everything, "setup", "addresses", "image"]},
        {scope.lock(f"image:{name}") for name in everything},
        {scope.lock(paths.ADDRESSES)},
        {scope.lock(paths.SETUP)},
    )
    for one, other in itertools.combinations(kinds, 2):
        assert not one & other

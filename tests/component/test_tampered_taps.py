"""A QEMU that changes its own TAP."""

from __future__ import annotations

import fcntl
import os
import re

import pytest
from network_host import (
    GATEWAY,
    KNOCK,
    MAC,
    OTHER,
    OWNER,
    THEIRS,
    WEB1,
    WEB2,
    NetworkHost,
)
from wire import Guest, run

from qsysd.runtime import bridges, sysfs, tampering, taps

pytestmark = pytest.mark.needs_root


def changed(net: NetworkHost, guest: Guest, *, mac: str = "", owner: int | None = None) -> list[str]:
    """Change the guest's TAP by its own descriptor, and return what the check says that it repaired."""
    if mac:
        guest.set_tap_mac(mac)
    if owner is not None:
        fcntl.ioctl(guest.descriptor, taps.TUNSETOWNER, owner)
    return list(tampering.repair(net.scope))


@pytest.fixture
def running(net: NetworkHost) -> tuple[Guest, Guest]:
    """Two guests whose VMs run: their RuntimeDirectories belong to their users."""
    for vm in ("web1", "web2"):
        os.makedirs(net.scope.runtime(vm))
        os.chown(net.scope.runtime(vm), OWNER, OWNER)
    return net.plug(WEB1), net.plug(WEB2)


def local_entries() -> set[str]:
    """Return the MACs for which the bridge delivers frames to the host."""
    return set(re.findall(r"(\S+) dev \S+ (?:vlan \d+ )?master \S+ permanent", run("bridge", "fdb", "show")))


def test_the_mac_of_a_tap_differs_from_its_guests(net: NetworkHost) -> None:
    net.plug(WEB1)
    assert run("cat", f"{sysfs.DIRECTORY}/{WEB1.tap}/address").strip() == "fe:54:00:00:00:01"
    assert taps.tap_mac("fe:54:00:00:00:01") == "fa:54:00:00:00:01"
    assert local_entries() >= {bridges.mac("default"), "fe:54:00:00:00:01"}


def test_a_tap_with_another_guests_mac_is_found_and_repaired(
    net: NetworkHost, running: tuple[Guest, Guest]
) -> None:
    attacker, victim = running
    assert victim.gateway_mac(GATEWAY) and list(tampering.repair(net.scope)) == []
    attacker.set_tap_mac(OTHER)
    assert OTHER in local_entries()
    # As long as that lasts, the victim receives nothing, but neither does the attacker.
    run("ip", "neigh", "replace", THEIRS, "lladdr", OTHER, "dev", "qb-default")
    run("/usr/bin/python3", "-c", KNOCK.format(address=THEIRS))
    assert not attacker.receives(b"knock", timeout=0.2)
    (change,) = map(str, tampering.find(net.scope))
    assert change == f"{WEB1.tap}: the QEMU of web1 set the MAC {OTHER}"
    assert tampering.repaired() == []

    (line,) = tampering.repair(net.scope)
    assert line == f"{change}; it was restored"
    assert OTHER not in local_entries() and taps.tap_mac(MAC) in local_entries()
    # at once, before the victim sends anything
    run("/usr/bin/python3", "-c", KNOCK.format(address=THEIRS))
    assert victim.receives(b"knock") and not attacker.receives(b"knock", timeout=0.2)
    assert list(tampering.repair(net.scope)) == []
    assert tampering.repaired() == [("web1", WEB1.tap)]


def test_a_tap_whose_owner_cannot_be_restored_is_taken_off_the_bridge(
    net: NetworkHost, running: tuple[Guest, Guest]
) -> None:
    # No process in the control group of the VM's unit has it open.
    (line,) = changed(net, running[0], mac=OTHER, owner=65534)
    assert line.startswith(f"{WEB1.tap}: the QEMU of web1 set the MAC {OTHER} and the owner 65534; ")
    assert line.endswith("it was taken off the network default until the VM is started again")
    assert sysfs.bridge_ports("qb-default") == [WEB2.tap]


def test_other_descriptors_of_a_qemu_do_not_prevent_the_repair(
    net: NetworkHost, running: tuple[Guest, Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    # This process has the TAPs open, as QEMU has. It has the device open by its path only, too: the kernel
    # refuses each ioctl on such a descriptor.
    monkeypatch.setattr(tampering, "_processes", lambda _vm: [os.getpid()])
    path_only = os.open(taps.TUN_DEVICE, os.O_PATH | os.O_CLOEXEC)
    try:
        running[1].set_tap_mac(MAC)
        lines = changed(net, running[0], mac=OTHER, owner=65534)
    finally:
        os.close(path_only)
    assert [line.rpartition("; ")[2] for line in lines] == ["both were restored", "it was restored"]
    assert sysfs.attribute(WEB1.tap, "owner") == str(OWNER)
    assert list(tampering.repair(net.scope)) == []


def test_a_tap_that_is_changed_repeatedly_is_taken_off_the_bridge(
    net: NetworkHost, running: tuple[Guest, Guest]
) -> None:
    attacker, victim = running
    for _ in range(taps.REPAIRS_MAX):
        assert "it was restored" in changed(net, attacker, mac=OTHER)[0]
    (line,) = changed(net, attacker, mac=OTHER)
    assert "it was taken off the network default until the VM is started again" in line
    assert sysfs.bridge_ports("qb-default") == [WEB2.tap]
    bridges.up(net.scope, net.environment)
    assert sysfs.bridge_ports("qb-default") == [WEB2.tap]
    assert victim.gateway_mac(GATEWAY) == bridges.mac("default")


def test_a_tap_of_an_older_version_is_not_reported(net: NetworkHost, running: tuple[Guest, Guest]) -> None:
    taps._create("qv-old-0", OWNER)
    run(
        "ip",
        "link",
        "set",
        "qv-old-0",
        "alias",
        "qsysd:old:qv-old-0,52:54:00:00:00:0b,qb-default,default,10.83.0.13",
    )
    assert list(tampering.repair(net.scope)) == []

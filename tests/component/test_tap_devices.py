"""TAPs and their anti-spoofing elements are created and removed together."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
import threading

import pytest
import wire
from network_host import (
    FREE,
    GATEWAY,
    MINE,
    OWNER,
    WEB1,
    WEB2,
    NetworkHost,
    anti_spoofing,
    datagram,
    interfaces,
    rules,
    wait_for,
)
from wire import (
    BROADCAST,
    IPV4,
    Guest,
    ether,
    run,
    udp,
)

from qsysd.errors import HostError, StateError
from qsysd.runtime import antispoof, bridges, nftables, sysfs, taps
from qsysd.runtime.ports import Port

pytestmark = pytest.mark.needs_root


def test_unplug_removes_all_that_plug_created(net: NetworkHost) -> None:
    before = rules()
    taps.plug(net.scope, [WEB1, FREE], OWNER, "web1")
    assert {WEB1.tap, FREE.tap} <= set(sysfs.bridge_ports("qb-default"))
    assert taps.existing_taps() == {
        WEB1.tap: f"qsysd:web1:{WEB1}",
        FREE.tap: f"qsysd:web1:{FREE}",
    }
    assert {WEB1.tap, FREE.tap} == antispoof.protected_taps()
    taps.unplug(net.scope, [WEB1, FREE], "web1")
    assert interfaces() == {"qb-default"}
    assert rules() == before
    taps.unplug(net.scope, [WEB1, FREE], "web1")


def test_only_the_owner_can_open_a_tap(net: NetworkHost) -> None:
    taps.plug(net.scope, [WEB1], OWNER, "web1")
    program = (
        "import fcntl, struct\n"
        f"tun = open({taps.TUN_DEVICE!r}, 'r+b', buffering=0)\n"
        f"flags = {taps.IFF_TAP | taps.IFF_NO_PI | taps.IFF_VNET_HDR}\n"
        f"fcntl.ioctl(tun, {taps.TUNSETIFF}, struct.pack('16sH22x', b'{WEB1.tap}', flags))\n"
    )

    def opens(uid: int) -> bool:
        argv = ["setpriv", f"--reuid={uid}", "--clear-groups", "--bounding-set=-all"]
        argv += ["/usr/bin/python3", "-c", program]
        return subprocess.run(argv, check=False, stderr=subprocess.DEVNULL).returncode == 0

    if os.stat(taps.TUN_DEVICE).st_mode & 0o006 != 0o006:
        os.chmod(taps.TUN_DEVICE, 0o666)
    assert opens(OWNER)
    assert not opens(OWNER + 1)


def test_a_tap_gives_the_host_no_ipv6_address(net: NetworkHost) -> None:
    net.plug(WEB1)
    wait_for(lambda: "LOWER_UP" in run("ip", "link", "show", "dev", WEB1.tap))
    assert "inet6" not in run("ip", "address", "show", "dev", WEB1.tap)
    assert "inet6" not in run("ip", "address", "show", "dev", "qb-default")


def test_a_tap_left_by_a_crash_is_replaced(net: NetworkHost) -> None:
    taps.plug(net.scope, [WEB1], OWNER, "web1")
    index = run("cat", f"{sysfs.DIRECTORY}/{WEB1.tap}/ifindex")
    taps.plug(net.scope, [WEB1], OWNER + 1, "web1")
    assert run("cat", f"{sysfs.DIRECTORY}/{WEB1.tap}/ifindex") != index
    assert f"user {OWNER + 1} " in run("ip", "-d", "link", "show", "dev", WEB1.tap)


def test_the_elements_of_a_tap_left_by_a_crash_are_removed(net: NetworkHost) -> None:
    taps.plug(net.scope, [WEB1], OWNER, "web1")
    other = Port(WEB1.tap, WEB2.mac, "qb-default", "default", WEB2.address)
    taps.plug(net.scope, [other], OWNER, "web1")
    assert WEB1.mac not in rules() and WEB2.mac in rules()


def test_unplug_removes_the_tap_of_a_nic_that_was_removed_from_the_definition(net: NetworkHost) -> None:
    before = rules()
    gone = Port("qv-web1-1", FREE.mac, "qb-default", "default", "10.83.0.77")
    taps.plug(net.scope, [WEB1, gone], OWNER, "web1")
    taps.plug(net.scope, [WEB2], OWNER, "web2")
    changed = Port(WEB1.tap, "52:54:00:00:00:09", "qb-default", "default", "10.83.0.99")
    taps.unplug(net.scope, [changed], "web1")
    assert set(taps.existing_taps()) == {WEB2.tap}
    taps.unplug(net.scope, [], "web2")
    assert rules() == before


def test_unplug_removes_the_elements_of_a_tap_whose_alias_has_another_vm(net: NetworkHost) -> None:
    before = rules()
    for vm in ("", "renamed"):
        taps.plug(net.scope, [WEB1], OWNER, vm)
        changed = Port(WEB1.tap, "52:54:00:00:00:09", "qb-default", "default", "10.83.0.99")
        taps.unplug(net.scope, [changed], "web1")
        assert rules() == before


def test_one_start_after_a_flush_restores_the_anti_spoofing_of_all_vms(net: NetworkHost) -> None:
    first = net.plug(WEB1)
    run("nft", "flush", "ruleset")
    taps.unplug(net.scope, [WEB2], "web2")
    second = net.plug(WEB2)
    assert antispoof.protected_taps() == {WEB1.tap, WEB2.tap}
    # and the rules of its network, which guests would miss, and the host too
    assert "masquerade" in rules() and "jump guests" in rules()
    for guest in (first, second):
        assert guest.gateway_mac(GATEWAY) == bridges.mac("default")


def test_rules_that_were_flushed_are_restored_without_a_start(net: NetworkHost) -> None:
    guest = net.plug(WEB1)
    assert taps.restore_missing_rules(net.scope) == []
    run("nft", "flush", "ruleset")
    assert taps.restore_missing_rules(net.scope) == [WEB1.tap]
    assert antispoof.protected_taps() == {WEB1.tap}
    assert "masquerade" in rules() and "jump guests" in rules()
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")
    # without a VM, nothing is to be held
    taps.unplug(net.scope, [], "web1")
    run("nft", "flush", "ruleset")
    assert taps.restore_missing_rules(net.scope) == [] and rules() == ""


def test_rules_that_were_flushed_are_restored_although_their_sets_remain(net: NetworkHost) -> None:
    guest = net.plug(WEB1)
    run("nft", "flush", "table", *antispoof.TABLE.split())
    assert taps.restore_missing_rules(net.scope) == [WEB1.tap]
    assert "@addresses" in anti_spoofing()
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")


def test_elements_of_a_tap_that_no_longer_exists_are_dropped(net: NetworkHost) -> None:
    net.plug(WEB1)
    before = anti_spoofing()
    # What a start leaves that is killed between nft and ip.
    nftables.run(antispoof.additions([WEB2, FREE]))
    bridges.up(net.scope, net.environment)
    assert anti_spoofing() == before


def test_restarts_of_a_network_during_starts_and_stops_lose_no_elements(
    net: NetworkHost,
) -> None:
    """VMs come and go while the elements of all are written again, which reads the TAPs that exist."""
    vms = [
        Port(f"qv-vm{number}-0", f"52:54:00:00:01:{number:02x}", "qb-default", "default", f"10.83.0.{number}")
        for number in range(50, 58)
    ]
    before = anti_spoofing()
    ended = threading.Event()
    here = [os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt")]

    def restart() -> None:
        wire.enter(here)
        while not ended.is_set():
            bridges.up(net.scope, net.environment)

    def come_and_go(port: Port) -> None:
        wire.enter(here)
        vm = port.tap.split("-")[1]
        for _ in range(4):
            taps.plug(net.scope, [port], OWNER, vm)
            assert port.tap in antispoof.protected_taps()
            taps.unplug(net.scope, [port], vm)
        taps.plug(net.scope, [port], OWNER, vm)

    try:
        with concurrent.futures.ThreadPoolExecutor(len(vms) + 1) as pool:
            restarting = pool.submit(restart)
            changes = [pool.submit(come_and_go, port) for port in vms]
            try:
                for change in changes:
                    change.result()
            finally:
                ended.set()
            restarting.result()
        assert antispoof.protected_taps() == {port.tap for port in vms} == set(taps.existing_taps())
        for port in vms:
            taps.unplug(net.scope, [port], port.tap.split("-")[1])
        assert anti_spoofing() == before
    finally:
        for descriptor in here:
            os.close(descriptor)


def test_a_guest_with_two_nics_on_one_network_may_answer_from_either(net: NetworkHost) -> None:
    second = Port("qv-web1-1", "52:54:00:00:00:0a", "qb-default", "default", "10.83.0.12")
    taps.plug(net.scope, [WEB1, second], OWNER, "web1")
    guests = [Guest(port.tap, port.mac, "10.83.0.10") for port in (WEB1, second)]
    net.guests += guests
    listener = net.plug(WEB2)
    assert listener.gateway_mac(GATEWAY) == bridges.mac("default")
    for _ in range(2):
        for port, guest in zip((WEB1, second), guests, strict=True):
            other = second if port is WEB1 else WEB1
            assert port.address and other.address
            # ARP and IP with its own MAC and either address; never with the other NIC's MAC.
            for address in (port.address, other.address):
                guest.address = address
                assert guest.gateway_mac(GATEWAY) == bridges.mac("default")
                probe = f"from {address} by {port.tap}".encode()
                guest.send(ether(port.mac, BROADCAST, IPV4, udp(address, 9, "255.255.255.255", 9, probe)))
                assert listener.receives(probe)
                guest.send(
                    ether(other.mac, BROADCAST, IPV4, udp(address, 9, "255.255.255.255", 9, b"not me"))
                )
        assert not listener.receives(b"not me", timeout=0.2)
        # and again with what a network's start reads from the TAPs
        run("nft", "flush", "ruleset")
        bridges.up(net.scope, net.environment)
    taps.unplug(net.scope, [], "web1")
    taps.unplug(net.scope, [], "web2")
    assert antispoof.protected_taps() == set()


def test_a_tap_without_elements_can_send_nothing(net: NetworkHost) -> None:
    stranger, listener = net.plug(WEB1), net.plug(WEB2)
    assert stranger.gateway_mac(GATEWAY) == listener.gateway_mac(GATEWAY)
    nftables.run(antispoof.removals([WEB1]))
    stranger.send(datagram(MINE, 4000, 4000))
    assert not listener.receives(b"hello", timeout=0.2)


def test_a_tap_without_alias_after_a_kill_is_removed(net: NetworkHost) -> None:
    taps._create(WEB1.tap, OWNER)
    assert taps.existing_taps() == {WEB1.tap: ""}
    taps.unplug(net.scope, [WEB1], "web1")
    assert taps.existing_taps() == {}


def test_an_interface_of_another_program_is_not_changed(net: NetworkHost) -> None:
    run("ip", "tuntap", "add", "dev", WEB1.tap, "mode", "tap")
    run("ip", "link", "set", "dev", WEB1.tap, "alias", "a person's own")
    with pytest.raises(StateError, match="qv-web1-0"):
        taps.plug(net.scope, [WEB1], OWNER, "web1")
    taps.unplug(net.scope, [WEB1], "web1")
    assert WEB1.tap in interfaces()
    run("ip", "link", "delete", WEB1.tap)
    run("ip", "link", "add", WEB1.tap, "type", "veth", "peer", "name", "other")
    with pytest.raises(StateError, match="qv-web1-0"):
        taps.plug(net.scope, [WEB1], OWNER, "web1")


def test_the_error_names_a_missing_bridge(net: NetworkHost) -> None:
    bridges.down(net.scope, net.environment)
    with pytest.raises(HostError) as caught:
        taps.plug(net.scope, [WEB1], OWNER, "web1")
    assert caught.value.message == "network default: its bridge qb-default does not exist"
    assert caught.value.hint == "systemctl restart qsysd-network@default"
    assert interfaces() == set()


@pytest.mark.parametrize(
    ("tool", "words", "script"),
    [
        ("nft", "Could not process rule: No buffer", "cat >/dev/null; echo 'Error: {words}' >&2; exit 1"),
        (
            "ip",
            "link set dev qv-web1-0 master qb-default up: RTNETLINK answers: Device or resource busy",
            'read -r line; case "$line" in *alias*) echo "RTNETLINK answers: Device or resource busy" >&2;'
            ' echo "Command failed -:3" >&2; exit 1;; esac; (echo "$line"; cat) | {real} "$@"',
        ),
    ],
)
def test_a_failed_plug_leaves_nothing(
    net: NetworkHost, monkeypatch: pytest.MonkeyPatch, tool: str, words: str, script: str
) -> None:
    before = rules()
    directory = os.path.join(net.scope.root, "stand-ins")
    os.mkdir(directory)
    stand_in = os.path.join(directory, tool)
    body = script.replace("{words}", words).replace("{real}", shutil.which(tool) or "")
    # Only the first call fails twice over; what undoes it finds the real tool.
    with open(stand_in, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\n{body}\n")
    os.chmod(stand_in, 0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    with pytest.raises(HostError) as caught:
        taps.plug(net.scope, [WEB1, FREE], OWNER, "web1")
    assert words in caught.value.message
    assert caught.value.message.startswith("network default: ")
    monkeypatch.undo()
    assert interfaces() == {"qb-default"}
    assert rules() == before

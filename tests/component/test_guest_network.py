"""Networks on the real parts: TAPs, bridges, anti-spoofing, dnsmasq and NAT, in a network namespace."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import wire
from wire import (
    BROADCAST,
    IPV4,
    IPV6,
    Guest,
    arp,
    dhcp_message,
    echo_request,
    ether,
    ipv4,
    run,
    udp,
    udp_payload,
)

from qsysd import interface_names, network, render
from qsysd.config import load
from qsysd.errors import HostError, StateError
from qsysd.paths import Scope
from qsysd.runtime import antispoof, bridges, iproute, nftables, sysfs, tampering, taps
from qsysd.runtime.ports import Port

pytestmark = pytest.mark.needs_root

WEB1 = Port("qv-web1-0", "52:54:00:00:00:01", "qb-default", "default", "10.83.0.10")
WEB2 = Port("qv-web2-0", "52:54:00:00:00:02", "qb-default", "default", "10.83.0.11")
FREE = Port("qv-free-0", "52:54:00:00:00:03", "qb-default", "default")
OWNER = 12345
GATEWAY = "10.83.0.1"
BRIDGE_NETFILTER = "/proc/sys/net/bridge/bridge-nf-call-iptables"


class Host:
    """A host with the network `default`: its files in a directory of their own, its bridge up."""

    def __init__(self, root: str) -> None:
        self.scope = Scope(root)
        self.guests: list[Guest] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.dnsmasq: subprocess.Popen[bytes] | None = None
        os.makedirs(self.scope.networks_dir)
        network.prepare(self.scope, "default")
        # what StateDirectory= does in the unit
        leases = os.path.dirname(self.scope.leases("default"))
        os.mkdir(leases)
        shutil.chown(leases, "dnsmasq")
        self.render()

    def render(self, *keys: str) -> None:
        """Write what the network's definition comes to, with these keys more, and bring the network up."""
        text = "\n".join(("name: default", "subnet: 10.83.0.0/24", *keys))
        spec = load.parse_network(text, "default.yaml")
        for path, text in render.network_files(spec, self.scope).items():
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        with open(self.scope.network_environment("default"), encoding="utf-8") as file:
            self.environment = dict(line.rstrip().split("=", 1) for line in file if line.startswith("QSYSD_"))
        bridges.up(self.scope, self.environment)

    def plug(self, port: Port) -> Guest:
        """Plug a VM in and return its guest."""
        taps.plug(self.scope, [port], OWNER, port.tap.split("-")[1])
        guest = Guest(port.tap, port.mac, port.address or "0.0.0.0")
        self.guests.append(guest)
        return guest

    def serve(self) -> None:
        """Start the DHCP service with the user and the capabilities that its unit gives it."""
        capabilities = "+net_admin,+net_raw,+net_bind_service"
        privileges = ["--reuid=dnsmasq", "--regid=nogroup", "--clear-groups", "--no-new-privs"]
        privileges += [f"--{kind}-caps={capabilities}" for kind in ("inh", "ambient")]
        privileges += [f"--bounding-set=-all,{capabilities}"]
        command = ["dnsmasq", "--keep-in-foreground", f"--conf-file={self.scope.dnsmasq_config('default')}"]
        self.dnsmasq = subprocess.Popen(
            ["setpriv", *privileges, *command, "--log-facility=-"], stderr=subprocess.PIPE
        )
        self.processes.append(self.dnsmasq)
        assert self.dnsmasq.stderr
        # It has read everything when it says how many names it knows.
        for line in self.dnsmasq.stderr:
            if b"cleared cache" in line:
                return
        raise AssertionError("dnsmasq did not start")

    def reload(self) -> None:
        """Do what the unit's ExecReload does, and wait until it has happened."""
        assert self.dnsmasq and self.dnsmasq.stderr
        self.dnsmasq.send_signal(signal.SIGHUP)
        for line in self.dnsmasq.stderr:
            if b"cleared cache" in line:
                # the hosts files are read right after it
                time.sleep(0.05)
                return

    def stop_dnsmasq(self) -> None:
        """Kill the DHCP service."""
        assert self.dnsmasq
        self.dnsmasq.kill()
        self.dnsmasq.wait()

    def outside(self) -> int:
        """Join a machine to the host by an uplink; return the process in its namespace."""
        sleeper = subprocess.Popen(["unshare", "--net", "sleep", "60"])
        self.processes.append(sleeper)
        here = os.readlink("/proc/thread-self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{sleeper.pid}/ns/net") != here)
        run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", str(sleeper.pid))
        run("ip", "address", "add", "198.51.100.1/24", "dev", "up0")
        run("ip", "link", "set", "up0", "up")
        inside = ("nsenter", "-t", str(sleeper.pid), "-n", "ip")
        run(*inside, "address", "add", "198.51.100.2/24", "dev", "out0")
        run(*inside, "link", "set", "out0", "up")
        run(*inside, "route", "add", "10.83.0.0/24", "via", "198.51.100.1")
        return sleeper.pid

    def close(self) -> None:
        """End what was started."""
        for guest in self.guests:
            guest.close()
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()


def wait_for(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    """Wait until the condition holds; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


@pytest.fixture
def space() -> Iterator[None]:
    """An empty network namespace."""
    try:
        with wire.namespace():
            yield
    except PermissionError:
        pytest.skip("no network namespaces here")


@pytest.fixture
def host(space: None) -> Iterator[Host]:
    """A host with the network `default`. The directory is open to dnsmasq's user, as /var/lib is."""
    root = tempfile.mkdtemp(prefix="qsysd-network-")
    try:
        os.chmod(root, 0o755)
        made = Host(root)
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(root)


def interfaces() -> set[str]:
    """Return the host's interfaces, but for the loopback."""
    return set(os.listdir(sysfs.DIRECTORY)) - {"lo"}


def rules() -> str:
    """Return all of the host's firewall rules."""
    return run("nft", "list", "ruleset")


def anti_spoofing() -> str:
    """Return the rules and sets that hold TAPs to their addresses."""
    return run("nft", "list", "table", *antispoof.TABLE.split())


# TAPs


def test_plug_and_unplug_leave_nothing(host: Host) -> None:
    before = rules()
    taps.plug(host.scope, [WEB1, FREE], OWNER, "web1")
    assert {WEB1.tap, FREE.tap} <= set(sysfs.bridge_ports("qb-default"))
    assert taps.existing_taps() == {
        WEB1.tap: f"qsysd:web1:{WEB1}",
        FREE.tap: f"qsysd:web1:{FREE}",
    }
    assert {WEB1.tap, FREE.tap} == antispoof.protected_taps()
    taps.unplug(host.scope, [WEB1, FREE], "web1")
    assert interfaces() == {"qb-default"}
    assert rules() == before
    taps.unplug(host.scope, [WEB1, FREE], "web1")


def test_a_tap_is_its_owners_only(host: Host) -> None:
    taps.plug(host.scope, [WEB1], OWNER, "web1")
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


def test_a_tap_gives_the_host_no_ipv6_address(host: Host) -> None:
    host.plug(WEB1)
    wait_for(lambda: "LOWER_UP" in run("ip", "link", "show", "dev", WEB1.tap))
    assert "inet6" not in run("ip", "address", "show", "dev", WEB1.tap)
    assert "inet6" not in run("ip", "address", "show", "dev", "qb-default")


def test_a_tap_left_by_a_crash_is_replaced(host: Host) -> None:
    taps.plug(host.scope, [WEB1], OWNER, "web1")
    index = run("cat", f"{sysfs.DIRECTORY}/{WEB1.tap}/ifindex")
    taps.plug(host.scope, [WEB1], OWNER + 1, "web1")
    assert run("cat", f"{sysfs.DIRECTORY}/{WEB1.tap}/ifindex") != index
    assert f"user {OWNER + 1} " in run("ip", "-d", "link", "show", "dev", WEB1.tap)


def test_what_a_tap_left_by_a_crash_could_say_is_forgotten(host: Host) -> None:
    taps.plug(host.scope, [WEB1], OWNER, "web1")
    other = Port(WEB1.tap, WEB2.mac, "qb-default", "default", WEB2.address)
    taps.plug(host.scope, [other], OWNER, "web1")
    assert WEB1.mac not in rules() and WEB2.mac in rules()


def test_a_vm_that_lost_a_nic_while_it_ran_leaves_nothing(host: Host) -> None:
    before = rules()
    gone = Port("qv-web1-1", FREE.mac, "qb-default", "default", "10.83.0.77")
    taps.plug(host.scope, [WEB1, gone], OWNER, "web1")
    taps.plug(host.scope, [WEB2], OWNER, "web2")
    changed = Port(WEB1.tap, "52:54:00:00:00:09", "qb-default", "default", "10.83.0.99")
    taps.unplug(host.scope, [changed], "web1")
    assert set(taps.existing_taps()) == {WEB2.tap}
    taps.unplug(host.scope, [], "web2")
    assert rules() == before


def test_one_start_after_a_flush_restores_the_anti_spoofing_of_all_vms(host: Host) -> None:
    first = host.plug(WEB1)
    run("nft", "flush", "ruleset")
    taps.unplug(host.scope, [WEB2], "web2")
    second = host.plug(WEB2)
    assert antispoof.protected_taps() == {WEB1.tap, WEB2.tap}
    # and the rules of its network, which guests would miss, and the host too
    assert "masquerade" in rules() and "jump guests" in rules()
    for guest in (first, second):
        assert guest.gateway_mac(GATEWAY) == bridges.mac("default")


def test_rules_that_were_flushed_are_restored_without_a_start(host: Host) -> None:
    guest = host.plug(WEB1)
    assert taps.restore_flushed(host.scope) == []
    run("nft", "flush", "ruleset")
    assert taps.restore_flushed(host.scope) == [WEB1.tap]
    assert antispoof.protected_taps() == {WEB1.tap}
    assert "masquerade" in rules() and "jump guests" in rules()
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")
    # without a VM, nothing is to be held
    taps.unplug(host.scope, [], "web1")
    run("nft", "flush", "ruleset")
    assert taps.restore_flushed(host.scope) == [] and rules() == ""


def test_elements_of_a_tap_that_no_longer_exists_are_dropped(host: Host) -> None:
    host.plug(WEB1)
    before = anti_spoofing()
    # What a start leaves that is killed between nft and ip.
    nftables.run(antispoof.additions([WEB2, FREE]))
    bridges.up(host.scope, host.environment)
    assert anti_spoofing() == before


def test_a_network_that_is_restarted_between_starts_and_stops_loses_and_leaves_nothing(host: Host) -> None:
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
            bridges.up(host.scope, host.environment)

    def come_and_go(port: Port) -> None:
        wire.enter(here)
        vm = port.tap.split("-")[1]
        for _ in range(4):
            taps.plug(host.scope, [port], OWNER, vm)
            assert port.tap in antispoof.protected_taps()
            taps.unplug(host.scope, [port], vm)
        taps.plug(host.scope, [port], OWNER, vm)

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
            taps.unplug(host.scope, [port], port.tap.split("-")[1])
        assert anti_spoofing() == before
    finally:
        for descriptor in here:
            os.close(descriptor)


def test_a_guest_with_two_nics_on_one_network_may_answer_from_either(host: Host) -> None:
    second = Port("qv-web1-1", "52:54:00:00:00:0a", "qb-default", "default", "10.83.0.12")
    taps.plug(host.scope, [WEB1, second], OWNER, "web1")
    guests = [Guest(port.tap, port.mac, "10.83.0.10") for port in (WEB1, second)]
    host.guests += guests
    listener = host.plug(WEB2)
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
                assert listener.hears(probe)
                guest.send(
                    ether(other.mac, BROADCAST, IPV4, udp(address, 9, "255.255.255.255", 9, b"not me"))
                )
        assert not listener.hears(b"not me", timeout=0.2)
        # and again with what a network's start reads from the TAPs
        run("nft", "flush", "ruleset")
        bridges.up(host.scope, host.environment)
    taps.unplug(host.scope, [], "web1")
    taps.unplug(host.scope, [], "web2")
    assert antispoof.protected_taps() == set()


def test_a_tap_without_elements_can_send_nothing(host: Host) -> None:
    stranger, listener = host.plug(WEB1), host.plug(WEB2)
    assert stranger.gateway_mac(GATEWAY) == listener.gateway_mac(GATEWAY)
    nftables.run(antispoof.removals([WEB1]))
    stranger.send(datagram(MINE, 4000, 4000))
    assert not listener.hears(b"hello", timeout=0.2)


def test_a_tap_cut_short_by_a_kill_is_ours(host: Host) -> None:
    taps._create(WEB1.tap, OWNER)
    assert taps.existing_taps() == {WEB1.tap: ""}
    taps.unplug(host.scope, [WEB1], "web1")
    assert taps.existing_taps() == {}


def test_somebody_elses_interface_is_left_alone(host: Host) -> None:
    run("ip", "tuntap", "add", "dev", WEB1.tap, "mode", "tap")
    run("ip", "link", "set", "dev", WEB1.tap, "alias", "a person's own")
    with pytest.raises(StateError, match="qv-web1-0"):
        taps.plug(host.scope, [WEB1], OWNER, "web1")
    taps.unplug(host.scope, [WEB1], "web1")
    assert WEB1.tap in interfaces()
    run("ip", "link", "delete", WEB1.tap)
    run("ip", "link", "add", WEB1.tap, "type", "veth", "peer", "name", "other")
    with pytest.raises(StateError, match="qv-web1-0"):
        taps.plug(host.scope, [WEB1], OWNER, "web1")


def test_a_missing_bridge_is_named(host: Host) -> None:
    bridges.down(host.scope, host.environment)
    with pytest.raises(HostError) as caught:
        taps.plug(host.scope, [WEB1], OWNER, "web1")
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
    host: Host, monkeypatch: pytest.MonkeyPatch, tool: str, words: str, script: str
) -> None:
    before = rules()
    directory = os.path.join(host.scope.root, "stand-ins")
    os.mkdir(directory)
    stand_in = os.path.join(directory, tool)
    body = script.replace("{words}", words).replace("{real}", shutil.which(tool) or "")
    # Only the first call fails twice over; what undoes it finds the real tool.
    with open(stand_in, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\n{body}\n")
    os.chmod(stand_in, 0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    with pytest.raises(HostError) as caught:
        taps.plug(host.scope, [WEB1, FREE], OWNER, "web1")
    assert words in caught.value.message
    assert caught.value.message.startswith("network default: ")
    monkeypatch.undo()
    assert interfaces() == {"qb-default"}
    assert rules() == before


# anti-spoofing: what a guest sends, and whether another guest on the network receives it

KNOCK = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'knock', ('{address}', 99))"
MAC, OTHER = WEB1.mac, WEB2.mac
MINE, THEIRS = "10.83.0.10", "10.83.0.11"
ROUTER_ADVERTISEMENT = b"\x60\0\0\0\0\x10\x3a\xff" + bytes(32) + b"\x86\0\0\0\x40\0\7\x08" + bytes(8)
BPDU = bytes.fromhex("0026424203000000000080001234567890ab0000000080001234567890ab8001000014000200")


def tagged(frame: bytes, kind: int = wire.VLAN) -> bytes:
    """Return the frame with a VLAN tag."""
    return frame[:12] + kind.to_bytes(2, "big") + b"\0\5" + frame[12:]


def datagram(source: str, *ports: int, mac: str = MAC, destination: str = "255.255.255.255") -> bytes:
    """Return a broadcast frame with a datagram from `source`."""
    return ether(mac, BROADCAST, IPV4, udp(source, ports[0], destination, ports[1]))


def fragment(payload: bytes, place: int) -> bytes:
    """Return a broadcast frame with a fragment of a datagram: its place, and MORE_FRAGMENTS."""
    return ether(MAC, BROADCAST, IPV4, ipv4(MINE, "255.255.255.255", wire.UDP, payload, fragment=place))


# What a rogue DHCP server sends, which clients take from any source port.
OFFERED = dhcp_message("52:54:00:00:00:09", wire.OFFER, b"\3\4\x0a\x53\0\x0a", head=b"\2\1\6\0")
ROGUE = udp_payload(1067, 68, OFFERED)
DHCP_ANSWERS = {
    "DHCP answer": datagram(MINE, 67, 68),
    "DHCP answer as the gateway": datagram(GATEWAY, 67, 68),
    "DHCP answer from another port": ether(
        MAC, BROADCAST, IPV4, ipv4(MINE, "255.255.255.255", wire.UDP, ROGUE)
    ),
    "DHCP answer to one machine": ether(MAC, OTHER, IPV4, ipv4(MINE, THEIRS, wire.UDP, ROGUE)),
    "DHCP answer behind options": ether(
        MAC, BROADCAST, IPV4, ipv4(MINE, THEIRS, wire.UDP, ROGUE, options=b"\1" * 8)
    ),
    "DHCP answer longer than the frame": ether(
        MAC, BROADCAST, IPV4, ipv4(MINE, THEIRS, wire.UDP, ROGUE, length=900)
    ),
    "DHCP answer's first fragment": fragment(ROGUE[:48], wire.MORE_FRAGMENTS),
    "DHCP answer's least first fragment": fragment(ROGUE[:8], wire.MORE_FRAGMENTS),
    "DHCP answer's ports in a fragment that is sent again": fragment(
        udp_payload(9, 68, b""), wire.MORE_FRAGMENTS
    ),
}
PASSES = {
    "own address": datagram(MINE, 4000, 4000),
    "own ARP": arp(MAC, MAC, MINE, GATEWAY),
    "ARP probe": arp(MAC, MAC, "0.0.0.0", MINE),
    "later fragment": ether(MAC, BROADCAST, IPV4, ipv4(MINE, THEIRS, wire.UDP, b"the rest", fragment=4)),
}
REQUEST = udp("0.0.0.0", 68, "255.255.255.255", 67, dhcp_message(MAC, wire.DISCOVER))
HELD_BACK = {
    "another's MAC": datagram(MINE, 4000, 4000, mac=OTHER),
    "another's address": datagram(THEIRS, 4000, 4000),
    "the gateway's address": datagram(GATEWAY, 4000, 4000),
    "no address": datagram("0.0.0.0", 4000, 4000),
    "DHCP request": ether(MAC, BROADCAST, IPV4, REQUEST),
    "DHCP request to another guest": ether(MAC, OTHER, IPV4, REQUEST),
    "DHCP request to one machine": datagram("0.0.0.0", 68, 67, destination=THEIRS),
    "ARP with another's address": arp(MAC, MAC, GATEWAY, THEIRS),
    "ARP answer with another's address": arp(MAC, MAC, GATEWAY, THEIRS, operation=2),
    "ARP with another's MAC inside": arp(MAC, OTHER, MINE, THEIRS),
    "ARP from another's MAC": arp(OTHER, OTHER, MINE, THEIRS),
    "ARP probe for another's address": arp(MAC, MAC, "0.0.0.0", THEIRS),
    "router advertisement": ether(MAC, "33:33:00:00:00:01", IPV6, ROUTER_ADVERTISEMENT),
    "VLAN": tagged(datagram(MINE, 4000, 4000)),
    "VLAN, provider's": tagged(datagram(MINE, 4000, 4000), 0x88A8),
    "VLAN, twice": tagged(tagged(datagram(MINE, 4000, 4000))),
    "VLAN around ARP": tagged(arp(MAC, MAC, MINE, GATEWAY)),
    "spanning tree": ether(MAC, "01:80:c2:00:00:00", len(BPDU), BPDU),
    "unknown protocol": ether(MAC, BROADCAST, 0x88B5, b"hello"),
    **DHCP_ANSWERS,
}
# Without an address that is its own, a guest is held to its MAC and to a client's part.
FREE_HELD_BACK = {
    "another's MAC", "ARP from another's MAC", "spanning tree", "router advertisement", "DHCP request",
    "DHCP request to another guest", "DHCP request to one machine", *DHCP_ANSWERS,
} | {name for name in HELD_BACK if name.startswith("VLAN")}  # fmt: skip


def passing(host: Host, port: Port, frames: dict[str, bytes]) -> set[str]:
    """Send the frames as the guest at `port` and return the names of those that another guest hears."""
    sender, listener = host.plug(port), host.plug(WEB2)
    assert sender.gateway_mac(GATEWAY) == listener.gateway_mac(GATEWAY)
    # Where the kernel has br_netfilter, it would keep a lone fragment to itself.
    with contextlib.suppress(FileNotFoundError), open(BRIDGE_NETFILTER, "w", encoding="ascii") as file:
        file.write("0")
    end = datagram(MINE, 9, 9)
    for frame in [*frames.values(), end]:
        sender.send(frame)
    heard = set()
    for frame in listener.frames(2.0):
        if frame.ljust(60, b"\0") == end:
            return {name for name, sent in frames.items() if sent in heard}
        heard.add(frame.ljust(60, b"\0"))
    raise AssertionError("not even an honest frame came through")


def test_a_guest_is_held_to_its_address(host: Host) -> None:
    assert passing(host, WEB1, PASSES | HELD_BACK) == set(PASSES)


def test_a_guest_cannot_draw_anothers_frames_to_itself(host: Host) -> None:
    # The bridge takes in frames that are for itself on a way of their own, and learns from them.
    guest, other = host.plug(WEB1), host.plug(WEB2)
    assert other.gateway_mac(GATEWAY) == guest.gateway_mac(GATEWAY)
    for last in range(16):
        guest.send(ether(OTHER, f"01:80:c2:00:00:{last:02x}", 0x88CC, b"LLDP"))
        guest.send(ether(OTHER, BROADCAST, 0x88CC, b"hello"))
        assert guest.gateway_mac(GATEWAY)
        known = run("bridge", "fdb", "show", "dynamic")
        assert f"{OTHER} dev {WEB2.tap}" in known and f"{OTHER} dev {WEB1.tap}" not in known


def test_a_guest_without_address_is_held_to_its_mac(host: Host) -> None:
    port = Port(WEB1.tap, WEB1.mac, "qb-default", "default")
    assert passing(host, port, PASSES | HELD_BACK) == (set(PASSES) | set(HELD_BACK)) - FREE_HELD_BACK


def test_a_guest_receives_only_frames_for_its_own_mac(host: Host) -> None:
    guest, other = host.plug(WEB1), host.plug(WEB2)
    assert other.gateway_mac(GATEWAY) == guest.gateway_mac(GATEWAY)
    # The bridge floods what is for a MAC that it does not know (any more).
    run("bridge", "fdb", "del", OTHER, "dev", WEB2.tap, "master")
    run("ip", "neigh", "replace", THEIRS, "lladdr", OTHER, "dev", "qb-default")
    run("/usr/bin/python3", "-c", KNOCK.format(address=THEIRS))
    assert other.hears(b"knock")
    assert not guest.hears(b"knock", timeout=0.2)


# a QEMU that changes its own TAP


def changed(host: Host, guest: Guest, *, mac: str = "", owner: int | None = None) -> list[str]:
    """Change the guest's TAP by its own descriptor, and return what the check says that it repaired."""
    if mac:
        guest.set_tap_mac(mac)
    if owner is not None:
        fcntl.ioctl(guest.descriptor, taps.TUNSETOWNER, owner)
    return list(tampering.repair(host.scope))


@pytest.fixture
def running(host: Host) -> tuple[Guest, Guest]:
    """Two guests whose VMs run: their RuntimeDirectories belong to their users."""
    for vm in ("web1", "web2"):
        os.makedirs(host.scope.runtime(vm))
        os.chown(host.scope.runtime(vm), OWNER, OWNER)
    return host.plug(WEB1), host.plug(WEB2)


def local_entries() -> set[str]:
    """Return the MACs for which the bridge delivers frames to the host."""
    return set(re.findall(r"(\S+) dev \S+ (?:vlan \d+ )?master \S+ permanent", run("bridge", "fdb", "show")))


def test_a_taps_own_mac_is_no_guests(host: Host) -> None:
    host.plug(WEB1)
    assert run("cat", f"{sysfs.DIRECTORY}/{WEB1.tap}/address").strip() == "fe:54:00:00:00:01"
    assert taps.tap_mac("fe:54:00:00:00:01") == "fa:54:00:00:00:01"
    assert local_entries() >= {bridges.mac("default"), "fe:54:00:00:00:01"}


def test_a_tap_with_another_guests_mac_is_found_and_repaired(
    host: Host, running: tuple[Guest, Guest]
) -> None:
    attacker, victim = running
    assert victim.gateway_mac(GATEWAY) and list(tampering.repair(host.scope)) == []
    attacker.set_tap_mac(OTHER)
    assert OTHER in local_entries()
    # As long as that lasts, the victim receives nothing, but neither does the attacker.
    run("ip", "neigh", "replace", THEIRS, "lladdr", OTHER, "dev", "qb-default")
    run("/usr/bin/python3", "-c", KNOCK.format(address=THEIRS))
    assert not attacker.hears(b"knock", timeout=0.2)
    (change,) = map(str, tampering.find(host.scope))
    assert change == f"{WEB1.tap} of web1 was given the MAC {OTHER} by its QEMU"
    assert tampering.repaired() == []

    (line,) = tampering.repair(host.scope)
    assert line == f"{change}; it was restored"
    assert OTHER not in local_entries() and taps.tap_mac(MAC) in local_entries()
    # at once, before the victim sends anything
    run("/usr/bin/python3", "-c", KNOCK.format(address=THEIRS))
    assert victim.hears(b"knock") and not attacker.hears(b"knock", timeout=0.2)
    assert list(tampering.repair(host.scope)) == []
    assert tampering.repaired() == [("web1", WEB1.tap)]


def test_a_tap_whose_owner_cannot_be_restored_is_taken_off_the_bridge(
    host: Host, running: tuple[Guest, Guest]
) -> None:
    # No process in the control group of the VM's unit has it open.
    (line,) = changed(host, running[0], mac=OTHER, owner=65534)
    assert line.startswith(f"{WEB1.tap} of web1 was given the MAC {OTHER} and the owner 65534 by its QEMU; ")
    assert line.endswith("it was taken off the network default until the VM is started again")
    assert sysfs.bridge_ports("qb-default") == [WEB2.tap]


def test_what_else_a_qemu_opened_keeps_no_tap_from_being_repaired(
    host: Host, running: tuple[Guest, Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    # This process has the TAPs open, as QEMU has. It has the device open by its path only, too: the kernel
    # refuses each ioctl on such a descriptor.
    monkeypatch.setattr(tampering, "_processes", lambda _vm: [os.getpid()])
    path_only = os.open(taps.TUN_DEVICE, os.O_PATH | os.O_CLOEXEC)
    try:
        running[1].set_tap_mac(MAC)
        lines = changed(host, running[0], mac=OTHER, owner=65534)
    finally:
        os.close(path_only)
    assert [line.rpartition("; ")[2] for line in lines] == ["both were restored", "it was restored"]
    assert sysfs.attribute(WEB1.tap, "owner") == str(OWNER)
    assert list(tampering.repair(host.scope)) == []


def test_a_tap_that_is_changed_again_and_again_is_taken_off_the_bridge(
    host: Host, running: tuple[Guest, Guest]
) -> None:
    attacker, victim = running
    for _ in range(taps.REPAIRS_MAX):
        assert "it was restored" in changed(host, attacker, mac=OTHER)[0]
    (line,) = changed(host, attacker, mac=OTHER)
    assert "it was taken off the network default until the VM is started again" in line
    assert sysfs.bridge_ports("qb-default") == [WEB2.tap]
    bridges.up(host.scope, host.environment)
    assert sysfs.bridge_ports("qb-default") == [WEB2.tap]
    assert victim.gateway_mac(GATEWAY) == bridges.mac("default")


def test_a_tap_of_an_older_version_is_no_finding(host: Host, running: tuple[Guest, Guest]) -> None:
    taps._create("qv-old-0", OWNER)
    run(
        "ip",
        "link",
        "set",
        "qv-old-0",
        "alias",
        "qsysd:old:qv-old-0,52:54:00:00:00:0b,qb-default,default,10.83.0.13",
    )
    assert list(tampering.repair(host.scope)) == []


# bridges


def test_up_can_be_repeated_and_mends(host: Host) -> None:
    index = run("cat", f"{sysfs.DIRECTORY}/qb-default/ifindex")
    guest = host.plug(WEB1)
    run("nft", "flush", "ruleset")
    run("ip", "address", "replace", "10.9.9.1/24", "dev", "qb-default")
    with open(bridges.IP_FORWARD, "w", encoding="ascii") as file:
        file.write("0")
    assert bridges.up(host.scope, host.environment) == [f"restored the anti-spoofing of {WEB1.tap}"]
    assert bridges.up(host.scope, host.environment) == []
    assert run("cat", f"{sysfs.DIRECTORY}/qb-default/ifindex") == index
    assert run("cat", bridges.IP_FORWARD) == "1\n"
    assert iproute.addresses("qb-default") == {f"{GATEWAY}/24"}
    assert "masquerade" in rules() and WEB1.mac in rules()
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")


def test_a_bridge_deleted_by_hand_comes_back_with_its_vms(host: Host) -> None:
    guest = host.plug(WEB1)
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")
    run("ip", "link", "delete", "qb-default")
    assert f"put {WEB1.tap} back on the bridge" in bridges.up(host.scope, host.environment)
    # The gateway has the MAC that the guest remembers.
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")


def test_what_was_renamed_is_found_by_its_alias(host: Host) -> None:
    before = interfaces()
    host.plug(WEB1)
    run("ip", "link", "set", "dev", WEB1.tap, "down")
    run("ip", "link", "set", "dev", WEB1.tap, "name", "foo")
    taps.unplug(host.scope, [WEB1], "web1")
    assert interfaces() == before
    assert WEB1.tap not in antispoof.protected_taps()
    run("ip", "link", "set", "dev", WEB1.bridge, "down")
    run("ip", "link", "set", "dev", WEB1.bridge, "name", "bar")
    assert bridges.down(host.scope, host.environment) == ["removed the bridge bar"]
    assert not {"bar", WEB1.bridge} & interfaces()


def test_up_renames_bridge_and_taps_back(host: Host) -> None:
    guest = host.plug(WEB1)
    before = interfaces()
    for name, other in ((WEB1.tap, "foo"), (WEB1.bridge, "bar")):
        run("ip", "link", "set", "dev", name, "down")
        run("ip", "link", "set", "dev", name, "name", other)
    done = bridges.up(host.scope, host.environment)
    assert {"renamed bar back to qb-default", "renamed foo back"} <= set(done)
    assert interfaces() == before
    assert bridges.up(host.scope, host.environment) == []
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")


def test_ports_do_not_change_the_bridges_mac(host: Host) -> None:
    def address() -> str:
        return run("cat", f"{sysfs.DIRECTORY}/qb-default/address").strip()

    host.plug(WEB1)
    assert address() == bridges.mac("default")
    host.plug(WEB2)
    taps.unplug(host.scope, [WEB1], "web1")
    assert address() == bridges.mac("default")


def test_down_spares_running_vms(host: Host) -> None:
    guest = host.plug(WEB1)
    before = rules()
    assert bridges.down(host.scope, host.environment) == [
        f"left the bridge qb-default in place for {WEB1.tap}"
    ]
    assert rules() == before
    assert guest.gateway_mac(GATEWAY)
    taps.unplug(host.scope, [WEB1], "web1")
    assert bridges.down(host.scope, host.environment) == ["removed the bridge qb-default"]
    assert interfaces() == set() and rules() == ""
    bridges.down(host.scope, host.environment)


def test_a_broken_rules_file_leaves_no_bridge(host: Host) -> None:
    bridges.down(host.scope, host.environment)
    with open(host.scope.network_rules("default"), "a", encoding="utf-8") as file:
        file.write("nonsense\n")
    with pytest.raises(HostError, match=r"nft: .*syntax error"):
        bridges.up(host.scope, host.environment)
    assert interfaces() == set() and rules() == ""


def test_another_interface_of_the_bridges_name_is_left_alone(host: Host) -> None:
    bridges.down(host.scope, host.environment)
    run("ip", "link", "add", "qb-default", "type", "bridge")
    run("ip", "link", "set", "dev", "qb-default", "alias", "a person's own")
    with pytest.raises(HostError, match="not qsysd's"):
        bridges.up(host.scope, host.environment)
    bridges.down(host.scope, host.environment)
    assert interfaces() == {"qb-default"}
    run("ip", "link", "delete", "qb-default")
    run("ip", "link", "add", "qb-default", "type", "veth", "peer", "name", "other")
    with pytest.raises(HostError, match="not a bridge"):
        bridges.up(host.scope, host.environment)


def test_a_guest_reaches_the_outside_and_not_the_other_way_round(host: Host) -> None:
    outside = host.outside()
    guest = host.plug(WEB1)
    gateway = guest.gateway_mac(GATEWAY)
    guest.send(ether(MAC, gateway, IPV4, echo_request(MINE, "198.51.100.2")))
    assert guest.hears(b"ping")
    # Nobody out there may begin, not even with a route.
    program = KNOCK.format(address=MINE)
    run("nsenter", "-t", str(outside), "-n", "/usr/bin/python3", "-c", program)
    assert not guest.hears(b"knock", timeout=0.3)
    # The host itself may.
    run("/usr/bin/python3", "-c", program)
    assert guest.hears(b"knock")


def listen(address: str = "", port: int = 5000) -> socket.socket:
    """Return a service of the host on all of its addresses, or on one."""
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind((address, port))
    server.settimeout(0.3)
    return server


def received(server: socket.socket) -> bytes:
    """Return the next datagram of a service, or nothing."""
    try:
        return server.recv(100)
    except TimeoutError:
        return b""


def test_the_host_answers_only_dhcp_dns_and_icmp(host: Host) -> None:
    host.outside()
    guest = host.plug(WEB1)
    gateway = guest.gateway_mac(GATEWAY)
    with listen() as server:
        for address in (GATEWAY, "198.51.100.1", "255.255.255.255"):
            guest.send(ether(MAC, gateway, IPV4, udp(MINE, 99, address, 5000)))
        guest.send(ether(MAC, gateway, IPV4, udp(MINE, 53, "198.51.100.1", 53)))
        assert received(server) == b""
        # The host may speak to its guests, and gets their answers.
        server.sendto(b"knock", (MINE, 99))
        assert guest.hears(b"knock")
        guest.send(ether(MAC, gateway, IPV4, udp(MINE, 99, GATEWAY, 5000, b"here")))
        assert received(server) == b"here"
    assert guest.answered(GATEWAY, gateway) and guest.answered("198.51.100.1", gateway)

    host.render("host_access: true")
    with listen() as server:
        guest.send(ether(MAC, gateway, IPV4, udp(MINE, 99, GATEWAY, 5000)))
        assert received(server) == b"hello"


def test_guests_do_not_reach_the_host_by_ipv6(host: Host) -> None:
    guest = host.plug(FREE)
    gateway = guest.gateway_mac(GATEWAY)
    payload = udp_payload(99, 5000)
    addresses = socket.inet_pton(socket.AF_INET6, "fe80::1") + socket.inet_pton(socket.AF_INET6, "ff02::1")
    pseudo_header = addresses + len(payload).to_bytes(4, "big") + b"\0\0\0\x11"
    payload = payload[:6] + wire.checksum(pseudo_header + payload).to_bytes(2, "big") + payload[8:]
    packet = b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + b"\x11\1" + addresses + payload
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::", 5000))
        server.settimeout(0.3)
        for to in (gateway, "33:33:00:00:00:01"):
            guest.send(ether(FREE.mac, to, IPV6, packet))
        assert received(server) == b""


def test_guests_do_not_reach_the_credentials_of_a_cloud_host(host: Host) -> None:
    outside = host.outside()
    guest = host.plug(WEB1)
    gateway = guest.gateway_mac(GATEWAY)
    for address in ("169.254.169.254", "203.0.113.1"):
        run("nsenter", "-t", str(outside), "-n", "ip", "address", "add", f"{address}/32", "dev", "lo")
        run("ip", "route", "add", address, "via", "198.51.100.2")
    assert guest.answered("203.0.113.1", gateway)
    assert not guest.answered("169.254.169.254", gateway, timeout=0.3)


def test_an_administrators_own_port_forward_reaches_a_guest(host: Host) -> None:
    outside = host.outside()
    guest = host.plug(WEB1)
    assert guest.gateway_mac(GATEWAY)
    rule = f"ip daddr 198.51.100.1 udp dport 8080 dnat to {MINE}:99"
    run("nft", f"table ip own {{ chain p {{ type nat hook prerouting priority dstnat; {rule}; }}; }}")
    knock = KNOCK.format(address="198.51.100.1").replace("99", "8080")
    run("nsenter", "-t", str(outside), "-n", "/usr/bin/python3", "-c", knock)
    assert guest.hears(b"knock")


def test_an_isolated_network_has_no_way_out(host: Host) -> None:
    variables: dict[str, Any] = {
        "definition": "",
        "network": "default",
        "bridge": "qb-default",
        "subnet": "10.83.0.0/24",
    }
    variables |= {"gateway": GATEWAY, "host_access": False}
    with open(host.scope.network_rules("default"), "w", encoding="utf-8") as file:
        file.write(render.template("network.nft.j2", kind="isolated", **variables))
    bridges.up(host.scope, host.environment | {"QSYSD_KIND": "isolated"})
    host.outside()
    guest, other = host.plug(WEB1), host.plug(WEB2)
    gateway = guest.gateway_mac(GATEWAY)
    guest.send(ether(MAC, gateway, IPV4, echo_request(MINE, "198.51.100.2")))
    assert not guest.hears(b"\x06\x00\x00ping", timeout=0.3)
    guest.send(ether(MAC, OTHER, IPV4, udp(MINE, 5, THEIRS, 5, b"neighbour")))
    assert other.hears(b"neighbour")


# DHCP and DNS


def test_a_guest_gets_its_address_and_name(host: Host) -> None:
    host.serve()
    assert network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, MINE)]) is False
    guest = host.plug(WEB1)
    assert guest.dhcp() == MINE
    assert [lease[1:] for lease in network.leases(host.scope, "default")] == [(WEB1.mac, MINE, "web1")]
    assert guest.lookup("web1", GATEWAY) == MINE
    assert guest.lookup("web1.default.internal", GATEWAY) == MINE
    assert guest.lookup("web2.default.internal", GATEWAY) is None
    # Another system on the same disk has another client identifier, and gets the same address.
    assert guest.dhcp(client_id=b"\xff\1\2\3\4") == MINE


def test_a_guest_renews_and_releases_its_own_lease(host: Host) -> None:
    network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, MINE)])
    host.serve()
    guest = host.plug(WEB1)
    assert guest.dhcp() == MINE
    gateway = guest.gateway_mac(GATEWAY)
    renewal = dhcp_message(MAC, wire.REQUEST, client=MINE)
    guest.send(ether(MAC, gateway, IPV4, udp(MINE, 68, GATEWAY, 67, renewal)))
    assert guest.hears(bytes((53, 1, wire.ACK)))
    release = dhcp_message(MAC, wire.RELEASE, bytes((54, 4)) + socket.inet_aton(GATEWAY), client=MINE)
    guest.send(ether(MAC, gateway, IPV4, udp(MINE, 68, GATEWAY, 67, release)))
    wait_for(lambda: network.leases(host.scope, "default") == [])


def test_each_nic_of_a_vm_gets_its_address(host: Host) -> None:
    host.serve()
    network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, MINE), (WEB2.mac, THEIRS)])
    assert network.hosts(host.scope, "default", "web1") == [(WEB1.mac, MINE), (WEB2.mac, THEIRS)]
    first, second = host.plug(WEB1), host.plug(WEB2)
    assert (first.dhcp(), second.dhcp()) == (MINE, THEIRS)
    assert first.lookup("web1", GATEWAY) == MINE


def test_names_are_those_of_the_definitions(host: Host) -> None:
    second = Port("qv-web1-1", FREE.mac, "qb-default", "default", "10.83.0.12")
    assert second.address
    network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, MINE), (second.mac, second.address)])
    network.write_hosts(host.scope, "default", "web2", [(WEB2.mac, THEIRS)])
    host.serve()
    assert host.plug(WEB2).dhcp() == THEIRS
    taps.plug(host.scope, [WEB1, second], OWNER, "web1")
    first, nameless = (Guest(port.tap, port.mac) for port in (WEB1, second))
    host.guests += [first, nameless]
    for hostname in (b"wpad", b"localhost", b"web2"):
        assert (first.dhcp(hostname=hostname), nameless.dhcp(hostname=hostname)) == (MINE, second.address)
    assert {lease.name for lease in network.leases(host.scope, "default")} == {"web1", "web2", "*"}
    names = ("web1", "web2", "wpad", "wpad.default.internal", "localhost.default.internal")
    assert [first.lookup(name, GATEWAY) for name in names] == [MINE, THEIRS, None, None, None]


# What dnsmasq(8) reads as a keyword, a tag or a lease time in the place of a name, and what looks like it.
@pytest.mark.parametrize("vm", ["ignore", "infinite", "deprecated", "set", "net", "id", "d", "a12h", "w4m"])
def test_a_vm_may_have_a_name_that_dnsmasq_could_misread(host: Host, vm: str) -> None:
    network.write_hosts(host.scope, "default", vm, [(WEB1.mac, MINE)])
    host.serve()
    guest = host.plug(WEB1)
    assert guest.dhcp() == MINE
    assert guest.lookup(vm, GATEWAY) == guest.lookup(f"{vm}.default.internal", GATEWAY) == MINE
    (lease,) = network.leases(host.scope, "default")
    assert (lease.name, 0 < lease.expires - time.time() <= 12 * 3600) == (vm, True)


def test_a_stranger_gets_no_address(host: Host) -> None:
    host.serve()
    assert host.plug(WEB2).dhcp(retries=2) is None


def test_a_guest_asks_dhcp_only_in_its_own_name(host: Host) -> None:
    for vm, port in (("web1", WEB1), ("web2", WEB2)):
        assert port.address
        network.write_hosts(host.scope, "default", vm, [(port.mac, port.address)])
    host.serve()
    attacker, victim = host.plug(WEB1), host.plug(WEB2)
    assert (attacker.dhcp(), victim.dhcp()) == (MINE, THEIRS)
    gateway = attacker.gateway_mac(GATEWAY)
    server, theirs = (bytes((code, 4)) + socket.inet_aton(ip) for code, ip in ((54, GATEWAY), (50, THEIRS)))
    attacks = [
        dhcp_message(OTHER, wire.RELEASE, server, client=THEIRS),
        dhcp_message(OTHER, wire.DECLINE, server + theirs),
        dhcp_message(MAC, wire.RELEASE, server, client=THEIRS),
        dhcp_message(MAC, wire.DISCOVER, relay=THEIRS),
    ]
    for message in attacks:
        whole = udp_payload(68, 67, message)
        for packet in (
            udp("0.0.0.0", 68, "255.255.255.255", 67, message),
            udp(MINE, 68, GATEWAY, 67, message),
            udp(MINE, 1068, GATEWAY, 67, message),
            ipv4(MINE, GATEWAY, wire.UDP, whole, options=b"\1" * 8),
        ):
            attacker.send(ether(MAC, gateway, IPV4, packet))
        # the MAC is in the second fragment
        for at, more in ((0, wire.MORE_FRAGMENTS), (32, 0)):
            part = whole[at : 32 if more else None]
            packet = ipv4(MINE, GATEWAY, wire.UDP, part, fragment=at // 8 | more)
            attacker.send(ether(MAC, gateway, IPV4, packet))
    # Once dnsmasq has answered this, it has read all of them.
    assert attacker.dhcp() == MINE
    assert {lease.address for lease in network.leases(host.scope, "default")} == {MINE, THEIRS}
    assert victim.dhcp() == THEIRS


def test_leases_outlive_a_crash_and_a_reload(host: Host) -> None:
    network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, MINE)])
    host.serve()
    guest = host.plug(WEB1)
    assert guest.dhcp() == MINE
    host.reload()
    assert guest.lookup("web1", GATEWAY) == MINE
    host.stop_dnsmasq()
    host.serve()
    assert guest.lookup("web1", GATEWAY) == MINE
    assert guest.dhcp() == MINE


def test_the_service_follows_a_bridge_that_is_made_again(host: Host) -> None:
    network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, MINE)])
    bridges.down(host.scope, host.environment)
    host.serve()
    bridges.up(host.scope, host.environment)
    guest = host.plug(WEB1)
    assert guest.dhcp() == MINE
    run("ip", "link", "delete", "qb-default")
    bridges.up(host.scope, host.environment)
    assert guest.dhcp() == MINE


@pytest.mark.parametrize("running", [True, False])
def test_a_vm_made_again_gets_its_address_at_once(host: Host, running: bool) -> None:
    network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, MINE)])
    host.serve()
    guest = host.plug(WEB1)
    assert guest.dhcp() == MINE
    # delete
    taps.unplug(host.scope, [WEB1], "web1")
    if not running:
        host.stop_dnsmasq()
    assert network.remove_host(host.scope, "default", "web1") is True
    assert network.remove_host(host.scope, "default", "web1") is False
    if running:
        host.reload()
    network.release(host.scope, "default", MINE, WEB1.mac, running=running)
    assert network.leases(host.scope, "default") == []
    network.release(host.scope, "default", MINE, WEB1.mac, running=running)
    # create: the same name and address, another MAC
    network.write_hosts(host.scope, "default", "web1", [(WEB2.mac, MINE)])
    if not running:
        host.serve()
    again = host.plug(Port(WEB1.tap, WEB2.mac, "qb-default", "default", MINE))
    assert again.dhcp() == MINE
    assert again.lookup("web1", GATEWAY) == MINE


def test_a_changed_entry_counts_after_a_reload(host: Host) -> None:
    network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, MINE)])
    host.serve()
    assert network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, MINE)]) is False
    assert network.write_hosts(host.scope, "default", "web1", [(WEB1.mac, THEIRS)]) is True
    host.reload()
    guest = host.plug(Port(WEB1.tap, WEB1.mac, "qb-default", "default", THEIRS))
    assert guest.dhcp() == THEIRS


# what doctor sees


def test_a_free_subnet_is_chosen(space: None) -> None:
    run("ip", "link", "add", "d0", "type", "bridge")
    run("ip", "address", "add", "10.83.0.7/24", "dev", "d0")
    run("ip", "link", "set", "d0", "up")
    run("ip", "route", "add", "10.83.1.0/25", "dev", "d0")
    assert network.choose_subnet(["10.83.2.0/24"]) == "10.83.3.0/24"
    run("ip", "route", "add", "10.0.0.0/8", "dev", "d0")
    assert network.choose_subnet() == "172.30.0.0/24"


@pytest.mark.parametrize(
    ("others", "words", "remedy"),
    [
        (
            "ip filter { chain DOCKER-USER { }; chain F { %s hook forward priority 0; policy drop; }; }",
            "Docker blocks the guests' way out",
            "iptables -I DOCKER-USER -i qb-default -j ACCEPT",
        ),
        (
            "ip filter { chain ufw-before-input { }; chain I { %s hook input priority 0; policy drop; }; }",
            "ufw blocks DHCP and DNS",
            "ufw allow in on qb-default to any port 53",
        ),
        (
            "inet firewalld { chain filter_FORWARD { %s hook forward priority 10; reject; }; }",
            "firewalld blocks the guests' way out",
            "--add-interface=qb-default",
        ),
        (
            "inet own { chain f { %s hook forward priority 0; policy drop; }; }",
            "the firewall table inet own blocks",
            "let qb-default through",
        ),
    ],
)
def test_a_firewall_in_the_way_is_named(host: Host, others: str, words: str, remedy: str) -> None:
    assert network.blockers() == []
    run("nft", "table " + others % "type filter")
    (blocker,) = network.blockers()
    assert words in blocker.message and remedy in blocker.remedy


def test_a_firewall_that_knows_the_bridge_is_not_named(host: Host) -> None:
    chain = 'type filter hook forward priority 0; policy drop; iifname "qb-default" accept;'
    run("nft", f"table ip f {{ chain f {{ {chain} }}; }}")
    assert network.blockers() == []


def test_switched_off_forwarding_and_lost_rules_are_named(host: Host) -> None:
    host.plug(WEB1)
    with open(bridges.IP_FORWARD, "w", encoding="ascii") as file:
        file.write("0")
    run("nft", "flush", "ruleset")
    assert [blocker.message for blocker in network.blockers()] == [
        "IPv4 forwarding is off",
        f"{WEB1.tap} has no anti-spoofing rules: something has flushed nftables",
    ]
    bridges.up(host.scope, host.environment)
    assert network.blockers() == []


def test_a_dns_server_on_all_addresses_is_named(host: Host) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 53))
        (blocker,) = network.blockers()
    assert "port 53" in blocker.message
    assert interface_names.bridge("default") == "qb-default"

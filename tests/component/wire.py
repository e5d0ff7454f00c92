"""A host in a network namespace of its own, and guests that speak raw Ethernet through their TAPs."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator

from qsysd.runtime import taps

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
SIOCSIFHWADDR = 0x8924
DEADLINE = 20.0  # seconds
RETRIES = 20
RETRY_INTERVAL = 0.15  # seconds that a guest waits for an answer
BROADCAST = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
UDP = 17
MORE_FRAGMENTS = 0x2000
DISCOVER, OFFER, REQUEST, DECLINE, ACK, RELEASE = 1, 2, 3, 4, 5, 7


def run(*argv: str, check: bool = True) -> str:
    """Run a program in the namespace and return its output."""
    return subprocess.run(argv, check=check, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """Move this thread into an empty network namespace, with the sysfs that belongs to it, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = [os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt")]
    directory = os.getcwd()
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    try:
        run("mount", "--make-rprivate", "/")
        run("mount", "-t", "sysfs", "sysfs", "/sys")
        run("ip", "link", "set", "lo", "up")
        yield
    finally:
        for descriptor in before:
            # EINVAL while a thread that was joined has still to leave the kernel: it shares our root.
            deadline = time.monotonic() + DEADLINE
            while libc.setns(descriptor, 0) != 0:
                assert time.monotonic() < deadline, os.strerror(ctypes.get_errno())
                time.sleep(0.001)
            os.close(descriptor)
        os.chdir(directory)


def enter(namespaces: Iterable[int]) -> None:
    """Move this thread into a network and a mount namespace, with its own root and directory from then on."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_FS) == 0
    for descriptor in namespaces:
        assert libc.setns(descriptor, 0) == 0, os.strerror(ctypes.get_errno())


def hardware(text: str) -> bytes:
    """Return the six bytes of a MAC."""
    return bytes.fromhex(text.replace(":", ""))


def ether(source: str, destination: str, kind: int, payload: bytes) -> bytes:
    """Return an Ethernet frame, padded to the shortest that a wire carries."""
    return (hardware(destination) + hardware(source) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def arp(source: str, sender_mac: str, sender: str, target: str, *, operation: int = 1) -> bytes:
    """Return an ARP frame: a request unless `operation` is 2."""
    addresses = hardware(sender_mac) + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    return ether(source, BROADCAST, ARP, struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + addresses)


def checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    fragment: int = 0,
    options: bytes = b"",
    length: int | None = None,
) -> bytes:
    """Return an IPv4 packet.

    fragment: its distance from the beginning of the whole in units of 8 bytes, and MORE_FRAGMENTS.
    options: of the header, in units of 4 bytes. length: what the header states, if not the truth.
    """
    words = 5 + len(options) // 4
    total = words * 4 + len(payload) if length is None else length
    head = struct.pack("!BBHHHBB", 0x40 | words, 0, total, 1, fragment, 64, protocol)
    addresses = socket.inet_aton(source) + socket.inet_aton(destination) + options
    return head + struct.pack("!H", checksum(head + b"\0\0" + addresses)) + addresses + payload


def udp(source: str, source_port: int, destination: str, port: int, payload: bytes = b"hello") -> bytes:
    """Return an IPv4 packet with a datagram."""
    return ipv4(source, destination, UDP, udp_payload(source_port, port, payload))


def udp_payload(source_port: int, port: int, payload: bytes = b"hello") -> bytes:
    """Return a datagram; its checksum is left out, as RFC 768 allows."""
    return struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload


def dhcp_message(
    mac: str,
    kind: int,
    options: bytes = b"",
    *,
    head: bytes = b"\1\1\6\0",
    client: str = "0.0.0.0",
    relay: str = "0.0.0.0",
) -> bytes:
    """Return a DHCP message (RFC 2131). head: op, htype, hlen and hops; client: ciaddr; relay: giaddr."""
    addresses = socket.inet_aton(client) + bytes(8) + socket.inet_aton(relay)
    message = head + struct.pack("!IHH", 0x51535944, 0, 0) + addresses
    message += hardware(mac).ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63"
    return message + bytes((53, 1, kind)) + options + b"\xff"


def echo_request(source: str, destination: str) -> bytes:
    """Return a ping."""
    body = struct.pack("!HH", 7, 1) + b"ping"
    head = struct.pack("!BBH", 8, 0, 0)
    return ipv4(source, destination, 1, struct.pack("!BBH", 8, 0, checksum(head + body)) + body)


class Guest:
    """What QEMU and its guest are to the host: a process that holds the TAP open and speaks on it."""

    def __init__(self, tap: str, mac: str, address: str = "0.0.0.0") -> None:
        self.tap = tap
        self.mac = mac
        self.address = address
        self.descriptor = os.open(taps.TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = taps.IFF_TAP | taps.IFF_NO_PI
        fcntl.ioctl(self.descriptor, taps.TUNSETIFF, struct.pack("16sH22x", tap.encode(), flags))

    def close(self) -> None:
        """Let go of the TAP, as a QEMU that ends does."""
        os.close(self.descriptor)

    def set_tap_mac(self, mac: str) -> None:
        """Change the MAC of the TAP itself, as its descriptor permits."""
        fcntl.ioctl(
            self.descriptor, SIOCSIFHWADDR, struct.pack("16sH6s8x", self.tap.encode(), 1, hardware(mac))
        )

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire."""
        os.write(self.descriptor, frame)

    def frames(self, timeout: float) -> Iterator[bytes]:
        """Yield what comes in until `timeout` (seconds) is over; ARP requests for the guest are answered."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0 and select.select([self.descriptor], [], [], left)[0]:
            frame = os.read(self.descriptor, 65536)
            asked = frame[12:14] == struct.pack("!H", ARP) and frame[20:22] == b"\0\1"
            if asked and frame[38:42] == socket.inet_aton(self.address):
                answer = arp(self.mac, self.mac, self.address, socket.inet_ntoa(frame[28:32]), operation=2)
                self.send(hardware(":".join(f"{byte:02x}" for byte in frame[6:12])) + answer[6:])
            yield frame

    def receives(self, payload: bytes, timeout: float = 2.0) -> bool:
        """Return whether a frame with these bytes in it comes in."""
        return any(payload in frame for frame in self.frames(timeout))

    def answered(self, address: str, mac: str, timeout: float = 2.0) -> bool:
        """Ping an address by way of a MAC, and tell whether it answers."""
        self.send(ether(self.mac, mac, IPV4, echo_request(self.address, address)))
        # behind the header of Ethernet and IPv4: an echo reply
        source = socket.inet_aton(address)
        return any(
            frame[23] == 1 and frame[26:30] == source and frame[34] == 0 for frame in self.frames(timeout)
        )

    def gateway_mac(self, gateway: str) -> str:
        """Return the MAC that answers for the gateway's address. Raises AssertionError when none does."""
        # Again and again: the kernel opens a bridge port a moment after somebody opened the TAP.
        for _ in range(RETRIES):
            self.send(arp(self.mac, self.mac, self.address, gateway))
            for frame in self.frames(RETRY_INTERVAL):
                if frame[12:14] == struct.pack("!H", ARP) and frame[28:32] == socket.inet_aton(gateway):
                    return ":".join(f"{byte:02x}" for byte in frame[22:28])
        raise AssertionError(f"nobody has {gateway}")

    def _dhcp(self, kind: int, options: bytes) -> None:
        """Broadcast a DHCP message; the answer may come as unicast."""
        message = dhcp_message(self.mac, kind, options)
        self.send(ether(self.mac, BROADCAST, IPV4, udp("0.0.0.0", 68, "255.255.255.255", 67, message)))

    def _dhcp_answer(self, kind: int, timeout: float) -> str | None:
        """Return the address in a DHCP answer of this kind to this guest."""
        for frame in self.frames(timeout):
            message = frame[42:]
            mine = frame[34:36] == b"\0\x43" and message[28:34] == hardware(self.mac)
            if mine and message[240:243] == bytes((53, 1, kind)):
                return socket.inet_ntoa(message[16:20])
        return None

    def dhcp(self, *, retries: int = RETRIES, client_id: bytes = b"", hostname: bytes = b"") -> str | None:
        """Get an address as a guest does, and return it; None when nobody gives one."""
        identity = bytes((61, len(client_id))) + client_id if client_id else b""
        if hostname:
            # as hostname (12), and as a name that the server should enter into DNS (81, RFC 4702)
            identity += bytes((12, len(hostname))) + hostname
            identity += bytes((81, len(hostname) + 3, 1, 0, 0)) + hostname
        for _ in range(retries):
            self._dhcp(DISCOVER, identity)
            offered = self._dhcp_answer(OFFER, RETRY_INTERVAL)
            if offered:
                self._dhcp(REQUEST, identity + bytes((50, 4)) + socket.inet_aton(offered))
                self.address = self._dhcp_answer(ACK, RETRY_INTERVAL) or "0.0.0.0"
                return self.address
        return None

    def lookup(self, name: str, server: str) -> str | None:
        """Ask a DNS server for a name's address; None when it does not know it."""
        question = b"".join(bytes((len(part),)) + part.encode() for part in name.split(".")) + b"\0\0\1\0\1"
        query = struct.pack("!6H", 0x5153, 0x0100, 1, 0, 0, 0) + question
        datagram = udp(self.address, 5353, server, 53, query)
        self.send(ether(self.mac, self.gateway_mac(server), IPV4, datagram))
        for frame in self.frames(2.0):
            answer = frame[42:]
            if frame[34:36] == b"\0\x35" and answer[:2] == b"QS":
                found = struct.unpack("!H", answer[6:8])[0]
                return socket.inet_ntoa(answer[12 + len(question) + 12 :][:4]) if found else None
        return None

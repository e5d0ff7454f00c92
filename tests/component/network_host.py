"""A host with the network `default` in a network namespace, and what its tests share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from wire import (
    BROADCAST,
    IPV4,
    Guest,
    ether,
    run,
    udp,
)

from qsysd import network, render
from qsysd.config import load
from qsysd.paths import Scope
from qsysd.runtime import antispoof, bridges, sysfs, taps
from qsysd.runtime.ports import Port

WEB1 = Port("qv-web1-0", "52:54:00:00:00:01", "qb-default", "default", "10.83.0.10")
WEB2 = Port("qv-web2-0", "52:54:00:00:00:02", "qb-default", "default", "10.83.0.11")
FREE = Port("qv-free-0", "52:54:00:00:00:03", "qb-default", "default")
OWNER = 12345
GATEWAY = "10.83.0.1"
BRIDGE_NETFILTER = "/proc/sys/net/bridge/bridge-nf-call-iptables"
MAC, OTHER = WEB1.mac, WEB2.mac
MINE, THEIRS = "10.83.0.10", "10.83.0.11"
KNOCK = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'knock', ('{address}', 99))"


class NetworkHost:
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


def interfaces() -> set[str]:
    """Return the host's interfaces, but for the loopback."""
    return set(os.listdir(sysfs.DIRECTORY)) - {"lo"}


def rules() -> str:
    """Return all of the host's firewall rules."""
    return run("nft", "list", "ruleset")


def anti_spoofing() -> str:
    """Return the rules and sets that hold TAPs to their addresses."""
    return run("nft", "list", "table", *antispoof.TABLE.split())


def datagram(source: str, *ports: int, mac: str = MAC, destination: str = "255.255.255.255") -> bytes:
    """Return a broadcast frame with a datagram from `source`."""
    return ether(mac, BROADCAST, IPV4, udp(source, ports[0], destination, ports[1]))

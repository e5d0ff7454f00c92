"""An upgrade from the state before the steps were separated from the verbs, with VMs that run.

The package of that commit is built from the history of this clone. All that it left on a host must stay in
use: definitions, environment files, intents, seeds, notes of images, and above all the VMs that run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import earlier_package
import pytest
from labtest import LabHost, find_package, tiny_options

from tests.integration.helpers import (
    INSTALL,
    TRACES,
    active,
    apt,
    assert_no_force,
    console,
    create,
    drop_in,
    listed,
    main_pid,
    status,
    traces,
    unit,
    wait_ping,
    wait_ready,
)

if TYPE_CHECKING:
    from tests.integration.conftest import Lab

# The last commit before issue 8.
COMMIT = "f8aa729ca462124d505fceb35777a55341f97b32"

INTENTS = "/var/lib/qsysd/intents"
IMAGE = "base"

PLAIN, DEVICES, FOLLOWER, PAUSED, OFF, KILLED = "plain", "devices", "follower", "paused", "off", "killed"
RUNNING = (PLAIN, DEVICES, FOLLOWER, PAUSED)
ALL = (*RUNNING, OFF)
NICS = {PLAIN: 1, DEVICES: 2, FOLLOWER: 1, PAUSED: 1, OFF: 1}

# Typed at the root shell of a guest; the echo of the terminal does not have the two words.
SPOOF = (
    "ip address add 10.83.0.250/24 dev eth0;"
    " ping -c 1 -W 2 -I 10.83.0.250 10.83.0.1 >/dev/null && echo SPOOF''ED || echo REFU''SED\n"
)
# Types at a console and prints what it shows, up to one of two words.
TYPE = """\
import socket, sys
with socket.socket(socket.AF_UNIX) as console:
    console.settimeout(30)
    console.connect(sys.argv[1])
    console.sendall(sys.argv[2].encode())
    shown = b""
    while b"SPOOFED" not in shown and b"REFUSED" not in shown:
        shown += console.recv(4096) or sys.exit("the console was closed")
print(shown.decode(errors="replace"))
"""


@dataclass(frozen=True)
class Upgraded:
    """A host with the current package, and what was on it under the earlier one."""

    host: LabHost
    pids: dict[str, int]
    definitions: dict[str, str]
    states: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def upgraded(lab: Lab) -> Iterator[Upgraded]:
    """Give a host that was upgraded while VMs ran on it."""
    earlier = earlier_package.ensure(lab.folder, COMMIT)
    host = lab.host("upgrade")
    host.down()
    host.up("bookworm")
    host.install(earlier)
    create_vms(host)
    leave_an_intent(host)
    before = Upgraded(
        host,
        {name: main_pid(host, name) for name in ALL},
        {name: host.read(definition(name)) for name in ALL},
        {name: listed(host, name) for name in ALL},
    )
    upgrade(host, find_package())
    yield before
    host.down()


def definition(name: str) -> str:
    """Return the file of a VM's definition."""
    return f"/etc/qsysd/vms/{name}.yaml"


def create_vms(host: LabHost) -> None:
    """Create the VMs with the earlier package, and wait until the guests of those that run are ready."""
    host.sh("truncate -s 16M /root/base.raw")
    host.qsysd("image", "import", "/root/base.raw", "--format", "raw", "--name", IMAGE)
    create(host, PLAIN)
    devices = ("--image", IMAGE, "--disk=64M", "--disk=32M", "--network=default", "--network=default")
    create(host, DEVICES, options=devices)
    create(host, FOLLOWER, options=("--depends-on", PLAIN, "--cpus=2"))
    create(host, PAUSED)
    create(host, OFF, options=("--no-start", "--no-enable"))
    for name in RUNNING:
        wait_ready(host, name, times=NICS[name])
    host.qsysd("pause", PAUSED)


def leave_an_intent(host: LabHost) -> None:
    """Kill a `create` of the earlier package in the middle, while the unit starts."""
    folder = drop_in(host, KILLED, "[Service]", "ExecStartPre=/bin/sleep 3")
    process = host.popen(["qsysd", "create", KILLED, *tiny_options()])
    host.wait_until(
        lambda: active(host, KILLED) == "activating/start-pre" or None, timeout=30, what="the start"
    )
    process.kill()
    process.wait()
    host.sh("pkill -KILL -x qsysd || true")
    host.sh(f"rm -r {folder}/90-test.conf")
    assert KILLED in host.sh(f"ls {INTENTS}")


def upgrade(host: LabHost, package: Path) -> None:
    """Install the current package, as a user would."""
    host.put(package, "/root/current.deb")
    said = apt(host, *INSTALL, "/root/current.deb")
    assert "not ready" not in said, said
    # Both packages may have one version number: compare the files.
    sums = "dpkg-deb --ctrl-tarfile /root/current.deb | tar --extract --to-stdout ./md5sums"
    assert host.sh(sums) == host.sh("cat /var/lib/dpkg/info/qsysd.md5sums")
    host.sh("dpkg --verify qsysd")


def devices_of(host: LabHost, name: str) -> list[dict[str, Any]]:
    """Return the NICs of a VM, with their TAPs."""
    nics: list[dict[str, Any]] = status(host, name)["nics"]
    return nics


def rules(host: LabHost) -> str:
    """Return the anti-spoofing rules and the elements of their sets."""
    return host.sh("nft list table bridge qsysd")


def assert_on_the_network(host: LabHost, name: str) -> None:
    """Fail unless each NIC has its TAP on the bridge, its elements in the sets, and answers."""
    links = host.sh("ip -oneline link show master qb-default")
    elements = rules(host)
    for nic in devices_of(host, name):
        assert re.search(rf"\b{re.escape(nic['tap'])}\b", links), links
        own = rf'"{re.escape(nic["tap"])}" \. {nic["mac"]}'
        assert re.search(rf"{own}(?! \. )", elements), elements
        assert re.search(rf"{own} \. {re.escape(nic['address'])}\b", elements), elements
        host.sh("ip neigh flush dev qb-default")
        wait_ping(host, nic["address"])


def assert_refuses_spoofing(host: LabHost, name: str) -> None:
    """Fail unless frames with an address that the VM does not have are dropped."""
    socket = f"/var/lib/qsysd/vms/{name}/console.sock"
    shown = host.run(["python3", "-c", TYPE, socket, SPOOF]).stdout
    assert "REFUSED" in shown, shown


def without_earlier_helpers(host: LabHost) -> dict[str, list[str]]:
    """Return all traces but the copies of earlier helpers, which a step that runs may still need."""
    current = host.sh("readlink -f /var/lib/qsysd/helper/current")
    kept = re.compile(rf"/var/lib/qsysd/helper/(?!current|{Path(current).name})|/run/qsysd/seeds ")
    found = traces(host)
    return found | {"files": [line for line in found["files"] if not kept.match(line)]}


# The tests follow one another on the same host: from the upgrade to the last delete.


def test_no_vm_restarts(upgraded: Upgraded) -> None:
    host = upgraded.host
    assert {name: main_pid(host, name) for name in ALL} == upgraded.pids
    assert all(upgraded.pids[name] for name in RUNNING)
    for name in RUNNING:
        assert host.property(unit(name), "NRestarts") == "0"
        assert console(host, name).count("TINY BOOT") == 1


def test_definitions_stay_byte_for_byte(upgraded: Upgraded) -> None:
    assert {name: upgraded.host.read(definition(name)) for name in ALL} == upgraded.definitions


def test_an_interrupted_create_of_the_earlier_version_is_undone(upgraded: Upgraded) -> None:
    host = upgraded.host
    host.qsysd("render")
    assert host.sh(f"ls -A {INTENTS}") == ""
    assert [name for name in host.sh("ls /etc/qsysd/vms /var/lib/qsysd/vms").split() if KILLED in name] == []
    assert active(host, KILLED) == "inactive/dead"


def test_list_status_and_doctor_show_what_they_showed_before(upgraded: Upgraded) -> None:
    host = upgraded.host
    rows = {row["name"]: row for row in host.qsysd_json("list")}
    assert rows == upgraded.states
    for name in ALL:
        found = status(host, name)
        assert found["pending"] == []
        assert (found["problem"], found["uuid"] in upgraded.definitions[name]) == (None, True)
        assert [bool(disk["size"]) for disk in found["disks"]] == [True] * (2 if name == DEVICES else 0)
    host.qsysd("status", "--all")
    host.qsysd("doctor")
    host.qsysd("render", "--check")


def test_running_vms_keep_their_network_and_its_protection(upgraded: Upgraded) -> None:
    host = upgraded.host
    for name in (PLAIN, DEVICES, FOLLOWER):
        assert_on_the_network(host, name)
    assert_refuses_spoofing(host, PLAIN)
    # The timer of the current version finds the TAPs of the earlier one as they must be.
    host.systemctl("start", "qsysd-taps.service")
    assert_on_the_network(host, PLAIN)


def test_guests_of_the_earlier_version_power_off_and_start_again(upgraded: Upgraded) -> None:
    host = upgraded.host
    since = f"--since=@{time.time():.3f}"
    host.systemctl("stop", unit(FOLLOWER))
    host.qsysd("stop", "--all")
    for name in RUNNING:
        assert console(host, name).count("TINY POWEROFF") == 1
        assert host.property(unit(name), "Result") == "success"
        assert active(host, name) == "inactive/dead"
        assert_no_force(host, name, since)
    assert host.sh(TRACES["processes"]) == "0"

    host.qsysd("start", *ALL)
    for name in ALL:
        wait_ready(host, name, times=NICS[name] * (1 if name == OFF else 2))
        assert_on_the_network(host, name)
        assert status(host, name)["pending"] == []
    assert_refuses_spoofing(host, DEVICES)
    assert {name: host.read(definition(name)) for name in ALL} == upgraded.definitions


def test_delete_leaves_what_a_new_installation_has(upgraded: Upgraded) -> None:
    host = upgraded.host
    host.qsysd("delete", "--yes", *ALL)
    host.qsysd("image", "rm", "--yes", IMAGE)
    # The rules were migrated under running VMs; without a VM a restart creates them anew.
    host.systemctl("restart", "qsysd-network@default")
    left = without_earlier_helpers(host)
    apt(host, "apt-get", "purge", "-qq", "qsysd")
    host.sh("rm -rf /etc/qsysd /var/lib/qsysd /run/qsysd")
    host.install(find_package())
    assert left == without_earlier_helpers(host)

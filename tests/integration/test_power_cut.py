"""Power cuts that lose the page cache: what a command reported as done is on the disk.

/etc and /var/lib are file systems of their own, as on many hosts. A sequence of commands runs once; what
the disks hold is copied at random moments, and all the copies are looked at afterwards.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from labdisk import Disks, LoopDevice
from labtest import LabHost

from tests.integration.conftest import FreshHost

CUTS = 20  # inside commands
STAYS = "stays"
VMS = ("a1", "a2", "a3", "a4", "a5", "a6")

# Each VM is created, changed and deleted; the second of two is created before the first is deleted.
SEQUENCE = """\
step() {{ echo "begin $1 $2"; shift 2; "$@" >/dev/null 2>&1 || echo "failed $*"; }}
edit() {{ qsysd show $1 | sed 's/memory: 64M/memory: 96M/' | qsysd edit $1 --file -; }}
previous=
for vm in {vms}; do
    step create $vm qsysd create $vm {options}
    echo "end create $vm"
    step edit $vm edit $vm
    echo "end edit $vm"
    if [ "$previous" ]; then
        step delete $previous qsysd delete --yes $previous
        echo "end delete $previous"
    fi
    previous=$vm
done
"""
OPTIONS = "--image base --disk 8M --disk 1M --memory 64M --qemu-arg=-S --stop-timeout=1s"

# Recovers as a host boot does, then prints of each VM `gone`, its memory, or what it lacks.
CHECK = """\
import json, os, struct, sys
from qsysd.images.formats import backing_chain
from qsysd.host import recovery, rendering
from qsysd.host.context import Host

host = Host()
scope = host.scope
found = {"failed": [str(each) for each in recovery.recover(host) if each.error]}
found["intents"] = os.listdir(scope.intents_dir)

def problems(name):
    spec, rendered = rendering.of_definition(host, name)
    differing = host.store.differences(name, rendered)
    if differing and name in sys.argv[1].split():
        rendering.render_each(host, [name])  # as `start` does
    elif differing:
        yield f"differs: {differing}"
    for disk in spec.disks:
        backing_chain(scope.overlay(name, disk.name))
    with open(scope.seed(name), "rb") as file:
        seed = file.read()
    blocks = struct.unpack_from("<I", seed, 16 * 2048 + 80)[0] if len(seed) > 17 * 2048 else -1
    if blocks * 2048 != len(seed) or spec.uuid.encode() not in seed or b"#cloud-config" not in seed:
        yield f"seed of {len(seed)} bytes"
    if not os.path.islink(f"{scope.wants_dir}/qemu-vm@{name}.service"):
        yield "not enabled"
    with open(scope.dhcp_host("default", name)) as file:
        if spec.nics[0].mac not in file.read():
            yield "no DHCP entry"

for name in sys.argv[2:]:
    paths = [path(name) for path in (scope.definition, scope.environment, scope.drop_in_dir, scope.vm_dir)]
    paths += [scope.dhcp_host("default", name), f"{scope.wants_dir}/qemu-vm@{name}.service"]
    left = [path for path in paths if os.path.lexists(path)]
    if not left:
        found[name] = "gone"
        continue
    try:
        found[name] = "; ".join(problems(name)) or str(host.store.load(name).memory_mib)
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}; left: {left}"
print(json.dumps(found))
"""


class Commands:
    """What the sequence has reported: `begin VERB VM` and `end VERB VM`."""

    def __init__(self, host: LabHost) -> None:
        script = SEQUENCE.format(vms=" ".join(VMS), options=OPTIONS)
        self.process = host.popen(["/bin/bash", "-c", script], stdout=subprocess.PIPE)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def running(self) -> bool:
        """Return whether the sequence still runs."""
        return self.reader.is_alive()


class Expected:
    """The expected contents of the disks after a cut, from the output before and after the copy."""

    def __init__(self, before: list[str], after: list[str]) -> None:
        self.states = {STAYS: {"64"}} | {vm: {"gone"} for vm in VMS}
        self.at_work: dict[str, str] = {}  # VM → verb
        for number, line in enumerate(after):
            word, verb, vm = line.split()
            result = {"create": "64", "edit": "96", "delete": "gone"}[verb]
            if word == "begin":
                self.states[vm] = self.states[vm] | {result}
                self.at_work[vm] = verb
            elif number < len(before):
                self.states[vm] = {result}
                self.at_work = {}


@pytest.fixture
def disks(fresh_host: FreshHost) -> Iterator[tuple[LabHost, Disks]]:
    """Give a host whose /etc/qsysd, units and /var/lib/qsysd are on separate disks, and the disks."""
    host = fresh_host()
    disks = Disks(("etc", "var"))
    try:
        host.systemctl("stop", "qsysd-dhcp@default")
        etc, var = disks.devices
        etc.mount(host, "/mnt/etc")
        var.mount(host, "/mnt/var")
        host.sh(
            "cp -a /etc/qsysd /mnt/etc/qsysd; cp -a /etc/systemd/system /mnt/etc/system\n"
            "cp -a /var/lib/qsysd/. /mnt/var/; umount /mnt/etc /mnt/var"
        )
        mount(host, disks.devices)
        host.systemctl("start", "qsysd-dhcp@default")
        yield host, disks
    finally:
        host.down()
        disks.close()


def mount(host: LabHost, devices: list[LoopDevice]) -> None:
    """Mount the file systems."""
    etc, var = devices
    etc.mount(host, "/mnt/etc")
    var.mount(host, "/var/lib/qsysd")
    host.sh("mount --bind /mnt/etc/qsysd /etc/qsysd; mount --bind /mnt/etc/system /etc/systemd/system")


def unmount(host: LabHost) -> None:
    """Unmount the file systems."""
    host.sh("umount /etc/systemd/system /etc/qsysd /mnt/etc /var/lib/qsysd")


def look(host: LabHost, disks: Disks, cut: Path, at_work: dict[str, str]) -> dict[str, Any]:
    """Return the state of the VMs after a cut and recovery."""
    devices = disks.after(cut)
    try:
        mount(host, devices)
        edited = " ".join(vm for vm, verb in at_work.items() if verb == "edit")
        output = host.run(["python3", "/root/check.py", edited, STAYS, *VMS]).stdout
        unmount(host)
    finally:
        for device in devices:
            device.close()
    found: dict[str, Any] = json.loads(output)
    return found


def test_after_a_power_cut_each_vm_is_complete_or_does_not_exist(disks: tuple[LabHost, Disks]) -> None:
    host, pair = disks
    host.write("/root/check.py", CHECK)
    host.sh(
        "cd /root; qemu-img create -q -f qcow2 base.qcow2 8M\n"
        f"qsysd image import base.qcow2 --name base; qsysd create {STAYS} {OPTIONS}"
    )
    # Only the command itself syncs.
    cuts = [(pair.cut("created"), Expected([], []))]
    moments = random.Random(14)
    commands = Commands(host)
    while commands.running():
        time.sleep(moments.uniform(0.01, 0.09))
        before = list(commands.lines)
        cut = pair.cut(f"cut{len(cuts)}")
        cuts.append((cut, Expected(before, list(commands.lines))))
    assert commands.process.wait() == 0
    cuts.append((pair.cut("end"), Expected(commands.lines, commands.lines)))
    assert not [line for line in commands.lines if line.startswith("failed")], commands.lines
    inside = [(cut, expected) for cut, expected in cuts if expected.at_work]
    assert len(inside) >= CUTS
    host.sh(f"qsysd kill {STAYS} {VMS[-1]}; systemctl stop qsysd-dhcp@default; systemctl daemon-reload")
    unmount(host)
    for cut, expected in [cuts[0], *moments.sample(inside, CUTS), cuts[-1]]:
        found = look(host, pair, cut, expected.at_work)
        assert (found["failed"], found["intents"]) == ([], []), (cut.name, found)
        for vm, states in expected.states.items():
            assert found[vm] in states, (cut.name, expected.at_work, vm, found)

"""A compromised QEMU against the other guests of its network: what it can do to its own TAP."""

from __future__ import annotations

import time

from labtest import LabHost

from tests.integration.conftest import VMFactory
from tests.integration.helpers import (
    FROZEN,
    create,
    drop_in,
    listed,
    status,
    wait_ping,
    wait_ready,
)

# Runs instead of QEMU: sets the MAC of the TAP to another guest's, and its owner to nobody.
ATTACK = """\
import fcntl, os, struct, sys, time
tap, mac, go = sys.argv[1:]
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", tap.encode(), 0x5002))  # TUNSETIFF
while not os.path.exists(go):
    time.sleep(0.05)
mac = bytes.fromhex(mac.replace(":", ""))
fcntl.ioctl(tun, 0x8924, struct.pack("16sH6s8x", tap.encode(), 1, mac))  # SIOCSIFHWADDR
fcntl.ioctl(tun, 0x400454CC, 65534)  # TUNSETOWNER
while True:
    os.read(tun, 65536)
"""
PROGRAM = "/usr/local/lib/attack.py"


def test_a_tap_that_its_qemu_changed_is_restored_automatically(any_host: LabHost, vm: VMFactory) -> None:
    host = any_host
    bad, good = vm("bad", on=host), vm("good", on=host)
    create(host, good)
    mac = status(host, good)["nics"][0]["mac"]
    tap = host.sh(f'python3 -c \'from qsysd.interface_names import tap; print(tap("{bad}", "net0"))\'')
    go = f"/run/qsysd/vms/{bad}/go"
    host.write(PROGRAM, ATTACK)
    folder = drop_in(
        host,
        bad,
        "[Service]",
        "ExecStartPost=",
        "ExecStart=",
        f"ExecStart=/usr/bin/python3 -I {PROGRAM} {tap} {mac} {go}",
    )
    try:
        create(host, bad, options=FROZEN)
        host.systemctl("stop", "qsysd-taps.timer")
        wait_ready(host, good)
        address = listed(host, good)["ip"]
        wait_ping(host, address)
        attribute = f"cat /sys/class/net/{tap}/"
        own = (host.sh(f"{attribute}address"), host.sh(f"stat -c %u /run/qsysd/vms/{bad}"))
        assert own == (f"fe{host.sh(f'{attribute}ifalias').split(',')[1][2:]}", host.sh(f"{attribute}owner"))

        host.sh(f"touch {go}")
        host.wait_until(lambda: host.sh(f"{attribute}owner") == "65534", timeout=30, what="the attack")
        assert host.run(["ping", "-c", "1", "-W", "1", address], check=False).returncode != 0
        attack = f"{tap}: the QEMU of {bad} set the MAC {mac} and the owner 65534"
        assert attack in host.qsysd("doctor", check=False).stdout

        host.systemctl("start", "qsysd-taps.timer")
        started = time.monotonic()
        host.wait_until(
            lambda: (host.sh(f"{attribute}address"), host.sh(f"{attribute}owner")) == own,
            timeout=60,
            what=f"{tap} as it was",
        )
        print(f"restored {time.monotonic() - started:.1f} s after the timer was started")
        wait_ping(host, address)
        journal = host.journal("--unit=qsysd-taps.service", "--output=cat", f"--since=@{host.noted:.3f}")
        assert f"{attack}; both were restored" in journal
        host.sh("nft flush ruleset")
        host.systemctl("start", "qsysd-taps.service")
        assert address in host.sh("nft list table bridge qsysd") and host.sh(
            "nft list table ip qsysd_default"
        )
        # it runs every few seconds, and logs nothing else
        assert "Starting" not in journal and "Finished" not in journal
        assert (
            f"its QEMU changed the TAP {tap}, which was restored" in host.qsysd("doctor", check=False).stdout
        )
    finally:
        host.sh(f"rm -rf {PROGRAM} {folder}")
        host.systemctl("daemon-reload")

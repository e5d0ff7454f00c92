"""A Debian guest, from its image to its shutdown: one VM, two boots."""

from __future__ import annotations

import re
from collections.abc import Iterator

import debian_image
import pytest
from labtest import LabHost

from tests.integration.helpers import assert_no_force, listed, main_pid, unit

VM = "web1"
BUILD = 600
# Seconds. Without KVM, a guest on a busy machine boots in minutes.
BOOT = 420

# Presses Enter at the guest's console until the login prompt appears, then disconnects.
CONSOLE = """\
import os, pty, select, sys, time
child, terminal = pty.fork()
if child == 0:
    os.execvp("qsysd", ["qsysd", "console", sys.argv[1]])
seen, end = b"", time.monotonic() + 120
while b"login:" not in seen and time.monotonic() < end:
    os.write(terminal, b"\\r")
    if select.select([terminal], [], [], 1)[0]:
        seen += os.read(terminal, 65536)
os.write(terminal, b"\\x1d")
_, status = os.waitpid(child, 0)
print(seen.decode(errors="replace"))
sys.exit(os.waitstatus_to_exitcode(status) or (0 if b"login:" in seen else 9))
"""


@pytest.fixture(scope="module")
def guest(session_host: LabHost) -> Iterator[LabHost]:
    """Give a host with the VM web1, a Debian guest that answers on SSH."""
    session_host.up()
    if not session_host.exists("/var/lib/qsysd/images/debian.qcow2") and not debian_image.put(
        session_host, "bookworm"
    ):
        session_host.qsysd("image", "build", "debian", "--suite", "bookworm", timeout=BUILD)
        debian_image.keep(session_host, "bookworm")
    session_host.qsysd(
        "create",
        VM,
        "--image",
        "debian",
        "--memory",
        "512M",
        "--wait",
        "--wait-timeout",
        str(BOOT),
        timeout=BOOT + 60,
    )
    yield session_host
    session_host.qsysd("delete", VM, "--yes")
    session_host.qsysd("image", "rm", "debian", "--yes")


def inside(host: LabHost, script: str) -> str:
    """Run a shell script in the guest, by sudo, and return its output."""
    return host.qsysd("ssh", VM, "--", "sudo", "sh", "-c", f"'{script}'", timeout=BOOT).stdout.strip()


def test_guest_is_as_requested(guest: LabHost) -> None:
    assert guest.qsysd("ssh", VM, "--", "hostname").stdout.strip() == VM
    assert guest.qsysd("ip", VM).stdout.strip() == listed(guest, VM)["ip"]
    assert guest.qsysd("ssh", VM, "--", "exit 7", check=False).returncode == 7
    # the root file system has grown to the disk's 10 GiB
    assert int(inside(guest, "df --output=size -BM / | tail -1").strip().rstrip("M")) > 9000
    assert inside(guest, "cloud-init status --wait").endswith("done")
    assert inside(guest, "systemctl is-enabled qemu-guest-agent").split()[0] in (
        "enabled",
        "static",
        "indirect",
    )
    # sshd is not restarted during the first boot.
    starts = inside(guest, "journalctl -b -u ssh -o cat | grep -c ^Server.listening.on.0.0.0.0")
    assert starts == "1", inside(guest, "journalctl -b -u ssh")


def test_guest_resolves_names_and_has_a_name(guest: LabHost) -> None:
    answer = inside(guest, f"getent hosts {VM}.default.internal")
    assert answer.split()[0] in (listed(guest, VM)["ip"], "127.0.1.1")


def test_console_has_a_login_prompt_and_a_key_to_disconnect(guest: LabHost) -> None:
    done = guest.run(["/usr/bin/python3", "-c", CONSOLE, VM], timeout=180)
    assert f"{VM} login:" in done.stdout
    logs = guest.qsysd("logs", VM, "--lines", "400").stdout
    assert "Started qemu-vm@" in logs and "login:" in logs
    assert listed(guest, VM)["guest"] == "running"


def test_image_in_use_is_not_removed(guest: LabHost) -> None:
    refused = guest.qsysd("image", "rm", "debian", "--yes", check=False)
    assert refused.returncode == 5 and VM in refused.stderr
    assert guest.exists("/var/lib/qsysd/images/debian.qcow2")


def test_systemctl_stop_shuts_the_guest_down(guest: LabHost) -> None:
    before = listed(guest, VM)
    guest.forget_journal()
    guest.systemctl("stop", unit(VM))
    assert guest.properties(unit(VM), "ActiveState", "Result") == {
        "ActiveState": "inactive",
        "Result": "success",
    }
    assert_no_force(guest, VM)
    assert guest.run(["qemu-img", "check", "-q", f"/var/lib/qsysd/vms/{VM}/disk0.qcow2"]).returncode == 0

    guest.qsysd("start", VM)
    # ssh waits for sshd, which answers before it accepts logins
    ready = guest.wait_until(
        lambda: guest.qsysd("ssh", VM, "--", "true", check=False, timeout=BOOT).returncode == 0 or None,
        timeout=BOOT,
        what="a login in the guest",
    )
    assert ready
    after = listed(guest, VM)
    assert after["ip"] == before["ip"] and after["pid"] == main_pid(guest, VM) != before["pid"]
    # the guest's journal of its first boot: the power key, and a complete shutdown
    log = inside(guest, "journalctl -b -1 --no-pager -o cat")
    assert re.search("Power key pressed|Powering off|System is powering down", log), log[-2000:]
    assert "Reached target poweroff.target" in log and "Unmounted" in log, log[-2000:]
    assert "Journal stopped" in log.splitlines()[-1], log[-500:]

"""The real thing: a Debian guest from its image to an orderly shutdown. One VM, two boots of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import debian_image
import pytest
from labtest import LabHost

from tests.integration.helpers import assert_no_force, listed, main_pid, unit

VM = "web1"
BUILD = 600
# Seconds. Without KVM and on a busy machine a guest takes minutes to its prompt.
BOOT = 420

# A person at a terminal: presses Enter at the guest's console until it asks for a login, then leaves.
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
    """Give a host with the VM web1, a Debian guest that answers on ssh."""
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
    """Run a shell script in the guest, as its user with sudo, and return what it printed."""
    return host.qsysd("ssh", VM, "--", "sudo", "sh", "-c", f"'{script}'", timeout=BOOT).stdout.strip()


def test_guest_is_what_was_asked_for(guest: LabHost) -> None:
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
    # Once sshd has answered, `ssh` works: no step of the first boot restarts it.
    starts = inside(guest, "journalctl -b -u ssh -o cat | grep -c ^Server.listening.on.0.0.0.0")
    assert starts == "1", inside(guest, "journalctl -b -u ssh")


def test_guest_reaches_dns_and_its_name_is_known(guest: LabHost) -> None:
    answer = inside(guest, f"getent hosts {VM}.default.internal")
    assert answer.split()[0] in (listed(guest, VM)["ip"], "127.0.1.1")


def test_console_has_a_login_and_is_left_by_a_key(guest: LabHost) -> None:
    done = guest.run(["/usr/bin/python3", "-c", CONSOLE, VM], timeout=180)
    assert f"{VM} login:" in done.stdout
    logs = guest.qsysd("logs", VM, "--lines", "400").stdout
    assert "Started qemu-vm@" in logs and "login:" in logs
    assert listed(guest, VM)["guest"] == "running"


def test_image_is_not_removed_while_it_is_used(guest: LabHost) -> None:
    refused = guest.qsysd("image", "rm", "debian", "--yes", check=False)
    assert refused.returncode == 5 and VM in refused.stderr
    assert guest.exists("/var/lib/qsysd/images/debian.qcow2")


def test_stop_by_systemctl_is_an_orderly_shutdown(guest: LabHost) -> None:
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
    # it waits for the server by itself, which answers before it lets users in
    ready = guest.wait_until(
        lambda: guest.qsysd("ssh", VM, "--", "true", check=False, timeout=BOOT).returncode == 0 or None,
        timeout=BOOT,
        what="a login in the guest",
    )
    assert ready
    after = listed(guest, VM)
    assert after["ip"] == before["ip"] and after["pid"] == main_pid(guest, VM) != before["pid"]
    # the guest's own log of its first boot: it heard the button, and went down to the end
    log = inside(guest, "journalctl -b -1 --no-pager -o cat")
    assert re.search("Power key pressed|Powering off|System is powering down", log), log[-2000:]
    assert "Reached target poweroff.target" in log and "Unmounted" in log, log[-2000:]
    assert "Journal stopped" in log.splitlines()[-1], log[-500:]

"""The output of the command line on a real host while VMs start, crash and fail."""

from __future__ import annotations

from labtest import LabHost

from tests.integration.conftest import VMFactory
from tests.integration.helpers import FROZEN, create, main_pid, refused, wait_active, wait_ready


def test_logs_follow_a_crash_and_the_restart(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name)
    wait_ready(host, name)
    file = f"/tmp/{name}.log"
    host.sh(f"qsysd logs --follow {name} >{file} 2>&1 & echo $! >{file}.pid")
    host.wait_until(lambda: host.read(file) or None, timeout=20, what="the log as it is")
    before = main_pid(host, name)
    host.sh(f"kill -9 {before}")

    def followed() -> bool | None:
        """The crash as systemd reports it, its restart, and the guest that boots again."""
        text = host.read(file)
        return all(words in text for words in ("status=9/KILL", "Scheduled restart job")) and (
            text.count("TINY READY") >= 2 or None
        )

    host.wait_until(followed, timeout=90, what="the crash and the restart in the log")
    assert main_pid(host, name) != before
    host.sh(f"kill -INT $(cat {file}.pid); rm {file} {file}.pid")


def test_an_error_before_the_start_is_printed_once(host: LabHost, vm: VMFactory) -> None:
    """The first and the last step of the unit both detect it."""
    name = vm()
    create(host, name, options=("--no-start",))
    host.sh(f"mkdir /var/lib/qsysd/vms/{name}/folder")
    said = refused(host, "start", name, status=1)
    assert said.count("not a plain file of one name") == 1, said
    host.sh(f"rmdir /var/lib/qsysd/vms/{name}/folder")


def test_ssh_to_a_guest_that_boots_waits_and_shows_it(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name, options=FROZEN)
    done = host.run(["timeout", "4", "qsysd", "ssh", name], check=False)
    assert f"{name}: waiting for SSH: the guest " in done.stderr
    assert done.stderr.count("waiting for SSH") == 1
    # and exits when the VM goes off
    host.sh(f"(sleep 1; systemctl stop qemu-vm@{name}) &")
    said = refused(host, "ssh", name, status=5)
    assert f"{name} is not running" in said or f"{name} is stopping" in said
    wait_active(host, name, "inactive")


def test_restart_shows_what_it_waits_for(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name, options=("--qemu-arg=-S", "--stop-timeout=4s"))
    said = host.qsysd("restart", name).stderr
    assert f"{name}: waiting for the guest to power off" in said
    assert "waiting for QEMU" not in said

"""The demo: create a Debian host, install qsysd, build an image, create a VM, and reboot the host.

It runs the commands of a user on a host of the lab, and shows their output. On this machine, only the
work directory of the lab is changed.
"""

from __future__ import annotations

import json
import os
import selectors
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

import debian_image
from labcli import lab_folder
from labhost import Host
from labproc import LabError

HOST = "demo"
SUITE = "bookworm"
VM = "web1"
STEPS = 8

# Seconds without output of a command until its progress is reported: the first time, and afterwards.
FIRST_REPORT = 2.0
NEXT_REPORT = 10.0
# Seconds. Without KVM the guest boots in about one minute.
COMMAND_TIMEOUT = 600.0
# Prints the first bytes that the server on the SSH port sends.
GREETING = 'exec 3<>"/dev/tcp/$0/22" && head -c 4 <&3'
SSH_TIMEOUT = 300.0


class Demo:
    """One run of the demo, on a host of the lab."""

    def __init__(self, host: Host, package: Path) -> None:
        self.host = host
        self.package = package
        self.started = time.monotonic()
        self.step = 0
        self.bold, self.plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")

    # output

    def heading(self, text: str) -> None:
        """Begin a step."""
        self.step += 1
        passed = time.monotonic() - self.started
        print(f"\n{self.bold}== {self.step}/{STEPS}  {text}{self.plain}  ({passed:.0f} s)\n", flush=True)

    def note(self, text: str) -> None:
        """Print a line that is not output of a command."""
        print(f"   {text}", flush=True)

    def typed(self, *argv: str, here: bool = False) -> None:
        """Print a command with a prompt, of the host or (`here`) of this machine."""
        prompt = "$" if here else f"root@{self.host.name}#"
        print(f"{self.bold}{prompt} {shlex.join(argv)}{self.plain}", flush=True)

    # commands

    def type(self, *argv: str, check: bool = True) -> None:
        """Print a command, run it on the host, and print its output.

        Raises LabError if it fails and `check` is set, or if it times out.
        """
        self.typed(*argv)
        process = self.host.popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            self.follow(process, argv)
        finally:
            if process.poll() is None:
                process.kill()
            status = process.wait()
        if check and status != 0:
            raise LabError(f"{shlex.join(argv)} failed with exit status {status}")
        print(flush=True)

    def follow(self, process: subprocess.Popen[str], argv: Sequence[str]) -> None:
        """Copy the output of a command until it exits; report progress while it prints nothing."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        started = time.monotonic()
        patience = FIRST_REPORT
        begun = b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while (passed := time.monotonic() - started) < COMMAND_TIMEOUT:
                if not selector.select(timeout=patience):
                    self.note(f"… {passed + patience:.0f} s")
                    patience = NEXT_REPORT
                    continue
                data = os.read(descriptor, 65536)
                *lines, begun = (begun + data).split(b"\n")
                for line in lines if data or not begun else [begun]:
                    # Of a line that was overwritten, print the last version.
                    print(line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"), flush=True)
                if not data:
                    return
        raise LabError(f"{shlex.join(argv)} timed out after {COMMAND_TIMEOUT:.0f} s")

    def state(self) -> dict[str, Any]:
        """Return the VM's entry of `qsysd list --json`."""
        rows = json.loads(self.host.run(["qsysd", "list", "--json"]).stdout)
        found: dict[str, Any] = next(row for row in rows if row["name"] == VM)
        return found

    def mac(self) -> str:
        """Return the MAC of the VM's NIC from QEMU's command line."""
        argv = self.host.run(["cat", f"/proc/{self.state()['pid']}/cmdline"]).stdout.split("\0")
        device = next(word for word in argv if "mac=" in word)
        return next(part.removeprefix("mac=") for part in device.split(",") if part.startswith("mac="))

    # the steps

    def run(self) -> None:
        """Run all steps. Raises LabError if one of them does not have the expected result."""
        self.boot()
        self.install()
        self.image()
        self.create()
        self.look()
        before = (self.mac(), self.state()["ip"])
        self.reboot()
        self.came_back(*before)
        self.enter_again()
        self.end()

    def boot(self) -> None:
        """Create a host."""
        self.heading("boot a Debian host with systemd in a container on this machine")
        if self.host.note():
            self.note(f"the host {self.host.name} of an earlier demo exists: removing it")
            self.host.down()
        self.typed("sudo", "tests/lab/lab", "up", HOST, here=True)
        self.host.up(SUITE)
        self.type("systemctl", "is-system-running")

    def install(self) -> None:
        """Install the package."""
        self.heading("install the package, which prepares the host")
        self.host.put(self.package, f"/root/{self.package.name}")
        self.type("apt-get", "install", "-qq", f"./{self.package.name}")

    def image(self) -> None:
        """Build the image, or use the one that an earlier demo has built."""
        self.heading("build a Debian image, on which the disks of VMs are overlays")
        if debian_image.put(self.host, SUITE):
            kept = debian_image.folder(self.host.lab, SUITE)
            self.note("An earlier demo has built it with: qsysd image build debian")
            self.note("It was copied from this directory; remove the directory to build it again:")
            self.note(os.path.relpath(kept))
            print(flush=True)
        else:
            self.type("qsysd", "image", "build", "debian", "--suite", SUITE)
            debian_image.keep(self.host, SUITE)
        self.type("qsysd", "image", "list")

    def create(self) -> None:
        """Create the VM."""
        self.heading("create a VM, and wait until its guest answers on SSH")
        self.type("qsysd", "create", VM, "--image", "debian", "--wait")

    def look(self) -> None:
        """Show the VM, and log in to its guest."""
        self.heading("the VM is a systemd unit")
        self.type("qsysd", "list")
        self.type("systemctl", "status", "--no-pager", f"qemu-vm@{VM}")
        self.type("qsysd", "ssh", VM, "--", "hostname")

    def reboot(self) -> None:
        """Reboot the host."""
        self.heading("reboot the host: the guest is shut down, and started again at boot")
        self.typed("sudo", "tests/lab/lab", "reboot", HOST, here=True)
        begun = time.monotonic()
        self.host.reboot()
        self.note(f"the host has rebooted after {time.monotonic() - begun:.1f} s")
        print(flush=True)

    def came_back(self, mac: str, address: str) -> None:
        """Show that the VM runs again, with the same MAC and address."""
        self.heading(f"{VM} runs again")
        self.type("qsysd", "list")
        state = self.state()
        seen = (state["active"], state["guest"], self.mac(), state["ip"])
        if seen != ("active", "running", mac, address):
            raise LabError(f"{VM} is not in the same state as before ({mac}, {address}): {seen}")
        self.note(f"unit active, guest running, same MAC {mac}, same address {address}")

    def enter_again(self) -> None:
        """Log in again after the guest has booted."""
        self.heading("log in to its guest again")
        command = ["qsysd", "ssh", VM, "--", "hostname"]
        begun = reported = time.monotonic()
        # sshd sends its banner before it accepts logins.
        greeting = ["timeout", "2", "bash", "-c", GREETING, self.state()["ip"]]
        while (
            self.host.run(greeting, check=False).stdout != "SSH-"
            or (done := self.host.run(command, check=False, timeout=SSH_TIMEOUT)).returncode != 0
        ):
            now = time.monotonic()
            if now - begun > SSH_TIMEOUT:
                raise LabError(f"{VM} did not answer on SSH within {SSH_TIMEOUT:.0f} s after the reboot")
            if now - reported > FIRST_REPORT:
                self.note(f"waiting for SSH: {now - begun:.0f} s")
                reported = now + NEXT_REPORT
            time.sleep(0.5)
        self.typed(*command)
        print(done.stdout, flush=True)

    def end(self) -> None:
        """Print what to try next."""
        passed = time.monotonic() - self.started
        print(
            f"{self.bold}Done in {passed:.0f} s.{self.plain} The host and {VM} keep running. To continue:\n"
        )
        for command, meaning in (
            (
                f"sudo tests/lab/lab shell {HOST}",
                f"open a shell on the host; try qsysd --help, qsysd console {VM}, qsysd doctor",
            ),
            (f"sudo tests/lab/lab crash {HOST}", "cut the power of the host, and boot it again"),
            (f"sudo tests/lab/lab down {HOST}", "remove the host"),
        ):
            print(f"   {command:<30} {meaning}")
        sys.stdout.flush()


def main() -> int:
    """Run the demo with the package whose path is the only argument; return the exit status."""
    if len(sys.argv) != 2 or os.geteuid() != 0:
        print("usage, as root: demo.py PACKAGE.deb (sudo make demo builds it first)", file=sys.stderr)
        return 2
    try:
        Demo(Host(lab_folder(), HOST), Path(sys.argv[1]).resolve()).run()
    except LabError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        print(f"demo: the host still runs; to examine it: sudo tests/lab/lab shell {HOST}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The demo: a Debian host, qsysd's package, an image, a VM, and a reboot of the host with nobody near.

It types into a host of the lab what a person would type, and shows what comes back. Nothing but the
lab's own work folder is changed on this machine.
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

# Seconds of silence after which a command that is at work is spoken for: first, then each time.
FIRST_WORD = 2.0
NEXT_WORD = 10.0
# Seconds. Without KVM the guest is at its prompt after about one minute.
COMMAND_TIMEOUT = 600.0
# Prints the first letters that whoever listens at the port of ssh says.
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

    # showing

    def heading(self, text: str) -> None:
        """Begin a step."""
        self.step += 1
        passed = time.monotonic() - self.started
        print(f"\n{self.bold}== {self.step}/{STEPS}  {text}{self.plain}  ({passed:.0f} s)\n", flush=True)

    def note(self, text: str) -> None:
        """Say something that is not a command's output."""
        print(f"   {text}", flush=True)

    def typed(self, *argv: str, here: bool = False) -> None:
        """Show a command as a person would type it, on the host or `here`, on this machine."""
        prompt = "$" if here else f"root@{self.host.name}#"
        print(f"{self.bold}{prompt} {shlex.join(argv)}{self.plain}", flush=True)

    # doing

    def type(self, *argv: str, check: bool = True) -> None:
        """Run a command in the host, and show it and what it says as it says it.

        Raises LabError when it fails, unless `check` is off, or does not end in time.
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
            raise LabError(f"{shlex.join(argv)} ended with {status}")
        print(flush=True)

    def follow(self, process: subprocess.Popen[str], argv: Sequence[str]) -> None:
        """Copy a command's output until it ends, with a sign of life while it is silent."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        started = time.monotonic()
        patience = FIRST_WORD
        begun = b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while (passed := time.monotonic() - started) < COMMAND_TIMEOUT:
                if not selector.select(timeout=patience):
                    self.note(f"… {passed + patience:.0f} s")
                    patience = NEXT_WORD
                    continue
                data = os.read(descriptor, 65536)
                *lines, begun = (begun + data).split(b"\n")
                for line in lines if data or not begun else [begun]:
                    # Of a line that was written over and over, the last state is what stays.
                    print(line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"), flush=True)
                if not data:
                    return
        raise LabError(f"{shlex.join(argv)} did not end within {COMMAND_TIMEOUT:.0f} s")

    def state(self) -> dict[str, Any]:
        """Return what `qsysd list --json` says of the VM."""
        rows = json.loads(self.host.run(["qsysd", "list", "--json"]).stdout)
        found: dict[str, Any] = next(row for row in rows if row["name"] == VM)
        return found

    def mac(self) -> str:
        """Return the MAC of the VM's NIC, as QEMU was started with it."""
        argv = self.host.run(["cat", f"/proc/{self.state()['pid']}/cmdline"]).stdout.split("\0")
        device = next(word for word in argv if "mac=" in word)
        return next(part.removeprefix("mac=") for part in device.split(",") if part.startswith("mac="))

    # the steps

    def run(self) -> None:
        """Run all steps. Raises LabError when one of them does not show what it should."""
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
        """Make a new host."""
        self.heading("a Debian host: systemd as PID 1, in a container on this machine")
        if self.host.note():
            self.note(f"{self.host.name} is there from before: it is removed, and made anew")
            self.host.down()
        self.typed("sudo", "tests/lab/lab", "up", HOST, here=True)
        self.host.up(SUITE)
        self.type("systemctl", "is-system-running")

    def install(self) -> None:
        """Install the package, as on any host."""
        self.heading("qsysd's package; it prepares the host, and leaves nothing running but DHCP and DNS")
        self.host.put(self.package, f"/root/{self.package.name}")
        self.type("apt-get", "install", "-qq", f"./{self.package.name}")

    def image(self) -> None:
        """Build the image, or take the one that an earlier demo has built."""
        self.heading("an image of Debian: what the disks of VMs are overlays on")
        if debian_image.put(self.host, SUITE):
            kept = debian_image.folder(self.host.lab, SUITE)
            self.note("An earlier run has built it with: qsysd image build debian")
            self.note("It was copied from where that was kept; without that folder it is built again:")
            self.note(os.path.relpath(kept))
            print(flush=True)
        else:
            self.type("qsysd", "image", "build", "debian", "--suite", SUITE)
            debian_image.keep(self.host, SUITE)
        self.type("qsysd", "image", "list")

    def create(self) -> None:
        """Make the VM."""
        self.heading("a VM, from one command to a guest that answers")
        self.type("qsysd", "create", VM, "--image", "debian", "--wait")

    def look(self) -> None:
        """Look at the VM from outside and from inside."""
        self.heading("it is a unit like any other")
        self.type("qsysd", "list")
        self.type("systemctl", "status", "--no-pager", f"qemu-vm@{VM}")
        self.type("qsysd", "ssh", VM, "--", "hostname")

    def reboot(self) -> None:
        """Reboot the host under the VM."""
        self.heading("the host reboots: the guest is shut down, and comes back with nobody near")
        self.typed("sudo", "tests/lab/lab", "reboot", HOST, here=True)
        begun = time.monotonic()
        self.host.reboot()
        self.note(f"the host is up again after {time.monotonic() - begun:.1f} s")
        print(flush=True)

    def came_back(self, mac: str, address: str) -> None:
        """Show that the VM runs again, and is the same."""
        self.heading(f"{VM} came back")
        self.type("qsysd", "list")
        state = self.state()
        seen = (state["active"], state["guest"], self.mac(), state["ip"])
        if seen != ("active", "running", mac, address):
            raise LabError(f"{VM} did not come back as it was ({mac}, {address}): {seen}")
        self.note(f"unit active, QEMU answers on QMP: running, same MAC {mac}, same address {address}")

    def enter_again(self) -> None:
        """Log in once more, when the guest has booted."""
        self.heading("and its guest answers again")
        command = ["qsysd", "ssh", VM, "--", "hostname"]
        begun = told = time.monotonic()
        # sshd greets before it lets anybody in, so a greeting alone is not the end.
        greeting = ["timeout", "2", "bash", "-c", GREETING, self.state()["ip"]]
        while (
            self.host.run(greeting, check=False).stdout != "SSH-"
            or (done := self.host.run(command, check=False, timeout=SSH_TIMEOUT)).returncode != 0
        ):
            now = time.monotonic()
            if now - begun > SSH_TIMEOUT:
                raise LabError(f"{VM} did not answer on ssh within {SSH_TIMEOUT:.0f} s after the reboot")
            if now - told > FIRST_WORD:
                self.note(f"the guest boots, and does not answer yet: {now - begun:.0f} s")
                told = now + NEXT_WORD
            time.sleep(0.5)
        self.typed(*command)
        print(done.stdout, flush=True)

    def end(self) -> None:
        """Say what to try next."""
        passed = time.monotonic() - self.started
        print(f"{self.bold}Done in {passed:.0f} s.{self.plain} The host and {VM} go on. How to go on:\n")
        for command, meaning in (
            (
                f"sudo tests/lab/lab shell {HOST}",
                f"a shell in the host: qsysd --help, qsysd console {VM}, qsysd doctor",
            ),
            (f"sudo tests/lab/lab crash {HOST}", "cut the host's power, and see the VM come back"),
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
        print(f"demo: the host is left as it is: sudo tests/lab/lab shell {HOST}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

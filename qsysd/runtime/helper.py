"""What the units call: before start, wait for QMP, stop, clean up, and a network's bridge.

    ExecStartPre=+  before-start VM   as root: the VM's directory to its uid, its TAPs
    ExecStartPost=+ ready VM          as the VM's user: success only when QEMU answers QMP
    ExecStop=+      stop VM           as the VM's user: power button, again and again, at last `quit`;
                                      when QEMU has ended then as root what after-stop does
    ExecStopPost=+  after-stop VM     as root: TAPs away, the VM's directory back to root
                    network-up NET, network-down NET, trim-logs all, check-taps all

It imports only the lowest floors, reads no YAML, and is installed as a copy of its own outside the
package, so that a VM can be stopped after the package is gone. All it needs is in the unit's
environment, which it checks like any untrusted input.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import time

from qsysd.errors import QEMU_EXITED, HostError, InvalidError, QsysdError, TimeoutExpired
from qsysd.paths import DROP_IN_MARK, Scope, is_name

# Read by type checkers only: importing typing takes longer than the rest of this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from qsysd.runtime.qmp import Client

READY_TIMEOUT = 60.0  # seconds until QEMU must answer; a host under load takes its time
CONSOLE_LOG_MAX = 4 * 1024 * 1024  # bytes
CONSOLE_LOG_KEPT = 1024 * 1024
PRESS_INTERVAL = 2.0  # seconds between two presses of the power button
QUIT_TIMEOUT = 10.0  # seconds that QEMU has to flush its disks and go
POLL_INTERVAL = 0.002  # seconds between two looks for a socket that QEMU is about to make


def say(message: str) -> None:
    """Write a line to the unit's journal."""
    print(message, file=sys.stderr, flush=True)


def setting(name: str, characters: str, lengths: range) -> str:
    """Return a variable of the unit's environment: so many of these characters. Raises InvalidError."""
    value = os.environ.get(name, "")
    if len(value) not in lengths or not set(value) <= set(characters):
        raise InvalidError(f"{name} is {value!r} in the environment file", hint="qsysd render")
    return value


def main_pid() -> int | None:
    """Return QEMU's process id, as systemd gives it to ExecStartPost and ExecStop."""
    value = os.environ.get("MAINPID", "")
    return int(value) if value.isdigit() else None


class Qemu:
    """The unit's main process, held by a descriptor so that its number cannot be taken by another."""

    def __init__(self, pid: int) -> None:
        self.descriptor: int | None
        try:
            self.descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self.descriptor = None

    def gone(self, timeout: float) -> bool:
        """Return whether the process has ended, after at most `timeout` seconds."""
        if self.descriptor is None:
            return True
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(max(0, int(timeout * 1000))))


def become_user(scope: Scope, vm: str) -> None:
    """Act, from root on, as the user that systemd chose for this VM: the owner of its RuntimeDirectory.

    QEMU may put anything into the directory of its sockets. As its user, a link there leads to nothing
    that QEMU itself could not reach. `become_root` leads back: as the real user stays root, QEMU's user
    may neither signal nor trace this process (kill(2), ptrace(2)).
    """
    if os.getuid() != 0:
        return
    user = os.stat(scope.runtime(vm))
    os.setgroups([])
    os.setegid(user.st_gid)
    os.seteuid(user.st_uid)


class Monitors:
    """The monitors of a VM, for root and for the VM's user, who may not search the directory of all VMs."""

    def __init__(self, scope: Scope, vm: str) -> None:
        from qsysd.runtime.qmp import socket_path

        self.paths = {
            purpose: socket_path(scope, vm, scope.monitor(vm, purpose))
            for purpose in ("stop", "ready", "cli")
        }
        directory = os.path.dirname(self.paths["stop"])
        try:
            self.directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{directory}: {error.strerror}", hint=f"qsysd kill {vm}") from error

    def connect(self, purpose: str, timeout: float) -> Client:
        """Return a connection to a monitor. timeout: seconds. Raises MonitorError."""
        from qsysd.runtime.qmp import Client

        return Client(self.paths[purpose], timeout=timeout, directory=self.directory)


def become_root() -> None:
    """Act as root again after `become_user`."""
    if os.getuid() == 0:
        os.seteuid(0)
        os.setegid(0)


def forget_root() -> None:
    """Make it impossible to act as root again after `become_user`."""
    group, user = os.getegid(), os.geteuid()
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


# before start


def own(directory: str, uid: int, gid: int) -> None:
    """Hand a VM's directory and the regular files in it to a user.

    The directory may hold whatever a broken-out QEMU left there, so nothing is followed: symlinks,
    devices and files with a second name are refused. Sockets are removed. Raises HostError.
    """
    from qsysd import trees

    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{directory}: {error.strerror}", hint="qsysd doctor") from error
    try:
        for name in os.listdir(root):
            try:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
            except OSError as error:
                # open(2): a socket, of a QEMU that has ended
                if error.errno == errno.ENXIO and _is_socket(name, root):
                    os.unlink(name, dir_fd=root)
                    continue
                raise HostError(f"{directory}/{trees.shown(name)}: {error.strerror}") from error
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                    raise HostError(
                        f"{directory}/{trees.shown(name)} is not a plain file of one name",
                        hint="a VM's directory holds only its own files; move it away",
                    )
                os.fchown(file, uid, gid)
            finally:
                os.close(file)
        os.fchown(root, uid, gid)
        os.fchmod(root, 0o700)
    finally:
        os.close(root)


def _is_socket(name: str, directory: int) -> bool:
    return stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def check_readable() -> None:
    """Raise HostError where kernel or initrd are no files that QEMU's user can read."""
    for path in filter(None, os.environ.get("QSYSD_READ_FILES", "").split(":")):
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from error
        if not stat.S_ISREG(mode):
            raise HostError(f"{path} is not a file")  # a directory would be shown to QEMU with all in it
        if not mode & 0o004:
            raise HostError(f"{path} cannot be read by the VM's user", hint=f"chmod o+r {path}")


def note_start(scope: Scope, vm: str, accelerator: str) -> None:
    """Record what the VM starts with, for `list` and `status`."""
    from qsysd import trees

    digits = "0123456789"
    lines = (
        setting("QSYSD_DIGEST", "0123456789abcdef", range(16, 17)),
        f"QSYSD_MEMORY_MIB={setting('QSYSD_MEMORY_MIB', digits, range(10))}",
        f"QSYSD_CPUS={setting('QSYSD_CPUS', digits, range(10))}",
        f"QSYSD_ACCELERATOR={accelerator}",
    )
    os.makedirs(scope.started_dir, mode=0o755, exist_ok=True)
    if os.path.isdir(scope.started_record(vm)):
        trees.remove(scope.started_record(vm))
    with open(scope.started_record(vm), "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")


def accelerator_in_force(scope: Scope) -> str:
    """Return the accelerator that QEMU is started with: kvm or tcg."""
    from qsysd.runtime import kvm

    chosen = os.environ.get("QSYSD_ACCEL")
    if chosen is None:
        # The first start since the host booted: systemd reads the file again for QEMU itself.
        return kvm.chosen(scope)[0]
    return "kvm" if chosen.split()[-1:] == ["kvm"] else "tcg"


def check_rendering(scope: Scope, vm: str) -> None:
    """Check that this start uses what the VM's definition renders to.

    Raises HostError where systemd has not loaded the drop-in that the environment file belongs to: the
    start would lack its ordering, timeout and mounts. A changed definition is only reported.
    """
    from qsysd.files import digest, read_bytes

    expected = os.environ.get("QSYSD_EXPECTED_DROP_IN", "")  # older environment files do not have it
    if expected and os.environ.get(DROP_IN_MARK, "") != expected:
        raise HostError(f"systemd has not loaded {scope.drop_in(vm)} as rendered", hint=f"qsysd render {vm}")
    rendered_from = os.environ.get("QSYSD_DEFINITION", "")
    definition = read_bytes(scope.definition(vm))
    if definition is None:
        say(f"{scope.definition(vm)} does not exist; this start uses what was rendered from it")
    elif rendered_from and digest(definition) != rendered_from:
        say(
            f"{scope.definition(vm)} was changed after it was rendered; this start uses the old rendering "
            f"(qsysd restart {vm} uses the new one)"
        )


def check_image(scope: Scope) -> None:
    """Raise HostError where the image is not the one that the VM's disk was created on.

    The overlay would show the guest parts of two different disks.
    """
    image, expected = os.environ.get("QSYSD_IMAGE", ""), os.environ.get("QSYSD_IMAGE_DIGEST", "")
    if not image or not expected:
        return
    from qsysd.files import read_bytes

    note = (read_bytes(scope.image_metadata(image)) or b"").decode("utf-8", "replace")
    fields = dict(line.split(": ", 1) for line in note.splitlines() if ": " in line)
    try:
        size = str(os.stat(scope.image(image)).st_size)
    except OSError as error:
        raise HostError(f"{scope.image(image)}: {error.strerror}", hint="qsysd image list") from error
    # Without the note, nothing is known of the image.
    if fields.get("sha256", expected).strip("'\"") != expected or fields.get("file_size", size) != size:
        raise HostError(
            f"image {image} is not the one that the VM's disk was created on",
            hint=f"restore the image with the SHA-256 {expected}; qsysd doctor",
        )


def before_start(scope: Scope, vm: str) -> None:
    """Make ready, as root, what QEMU may not make itself.

    The root comes first and goes last: where there is one, something is to be taken away.
    """
    from qsysd.runtime import roots, taps

    check_rendering(scope, vm)
    check_image(scope)
    ports = taps.parse_ports(os.environ.get("QSYSD_NICS", ""))
    accelerator = accelerator_in_force(scope)
    check_readable()
    if os.path.exists(scope.shutdown_mark):
        os.unlink(scope.shutdown_mark)  # a soft reboot keeps /run
    roots.make(scope.root_dir(vm))
    # systemd made the unit's RuntimeDirectory for the uid that it chose for this start
    user = os.stat(scope.runtime(vm))
    own(scope.vm_dir(vm), user.st_uid, user.st_gid)
    taps.plug(scope, ports, user.st_uid, vm)
    note_start(scope, vm, accelerator)


def after_stop(scope: Scope, vm: str) -> None:
    """Take away, as root, what was made ready; quiet when nothing is there.

    A host that goes down takes it away itself, and the next start hands the directory over anew.
    """
    if os.path.exists(scope.shutdown_mark):
        return
    from qsysd import trees
    from qsysd.runtime import roots, taps

    taps.unplug(scope, taps.parse_ports(os.environ.get("QSYSD_NICS", "")), vm)
    trees.remove(scope.started_record(vm))
    root = scope.root_dir(vm)
    if os.path.exists(root) and not roots.remove(root):
        say(f"{root} holds files or mounts that are not qsysd's; they were left in place")
    if os.path.isdir(scope.vm_dir(vm)):
        try:
            own(scope.vm_dir(vm), 0, 0)
        except HostError as error:
            # No other service's user gets at it (the directory above is root's), and a start refuses it.
            say(f"{error.message}; it was not given back to root")


# ready


def ready(scope: Scope, vm: str) -> None:
    """Return when QEMU answers QMP. Raises QsysdError when it ends first, TimeoutExpired when it does not."""
    from qsysd.runtime.qmp import MonitorError, MonitorGone

    pid = main_pid()
    if pid is None:
        raise QsysdError("QEMU has already ended")
    monitors = Monitors(scope, vm)
    become_user(scope, vm)
    forget_root()
    qemu = Qemu(pid)
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        if qemu.gone(POLL_INTERVAL):
            raise QsysdError(QEMU_EXITED)
        try:
            # The greeting comes from a thread of its own; a reply shows that QEMU's main loop runs.
            with monitors.connect("ready", max(0.1, deadline - time.monotonic())) as monitor:
                monitor.execute("query-status")
            return
        except MonitorGone:
            continue  # QEMU has not created it yet, or does not listen yet
        except MonitorError as error:
            raise QsysdError(f"QEMU does not answer: {error}") from error
    raise TimeoutExpired(f"QEMU made no monitor socket within {READY_TIMEOUT:.0f} s")


# stop


def connect(monitors: Monitors) -> Client | None:
    """Return a monitor that answers, the stop path's own first, or None."""
    from qsysd.runtime.qmp import MonitorError

    for purpose in monitors.paths:
        try:
            return monitors.connect(purpose, 1.0)
        except MonitorError as error:
            say(f"{error}")
    return None


def press(monitor: Client) -> None:
    """Press the power button; a paused or sleeping guest is woken first, else it cannot hear it."""
    status = monitor.run_state()
    if status in ("paused", "io-error", "prelaunch"):
        monitor.execute("cont")
    elif status == "suspended":
        monitor.execute("system_wakeup")
    monitor.execute("system_powerdown")


def stop(scope: Scope, vm: str) -> None:
    """Power the guest off, and clean up when QEMU has ended: with that, after-stop costs no Python.

    systemd also calls this after QEMU went by itself, without a MAINPID.
    """
    pid = main_pid()
    qemu = None if pid is None else Qemu(pid)
    if qemu is not None and not qemu.gone(0):
        monitors = Monitors(scope, vm)
        become_user(scope, vm)
        try:
            ended = power_off(monitors, qemu)
        finally:
            become_root()
        if not ended:
            say("QEMU does not quit; systemd ends it")
            return
    after_stop(scope, vm)


def power_off(monitors: Monitors, qemu: Qemu) -> bool:
    """Power the guest off, at the timeout let QEMU quit; return whether QEMU has ended."""
    from qsysd.runtime.qmp import MonitorError

    timeout = int(setting("QSYSD_STOP_TIMEOUT", "0123456789", range(1, 7)))
    deadline = time.monotonic() + timeout
    monitor: Client | None = None
    while not qemu.gone(0) and time.monotonic() < deadline:
        monitor = monitor or connect(monitors)
        try:
            if monitor:
                press(monitor)
        except MonitorError as error:
            say(f"{error}")
            monitor = None
        # A press is lost while the guest boots: press again until it is off.
        if qemu.gone(min(PRESS_INTERVAL, max(0.0, deadline - time.monotonic()))):
            return True
    if qemu.gone(0):
        return True
    say(f"the guest did not power off within {timeout} s; QEMU is told to quit")
    monitor = monitor or connect(monitors)
    if monitor:
        try:
            monitor.execute("quit")
        except MonitorError as error:
            say(f"{error}")
    return qemu.gone(QUIT_TIMEOUT if monitor else 0)


# the consoles' logs


def trim_logs(scope: Scope) -> None:
    """Cut each console log that has grown too long to its last part; a guest must not fill the host's disk.

    QEMU appends, so the file is cut in place. QEMU may write to the directory: nothing is followed.
    """
    for vm in os.listdir(scope.vms_dir):
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(scope.console_log(vm), flags)
        except OSError:
            continue  # none, or not a file of ours
        try:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size > CONSOLE_LOG_MAX:
                tail = os.pread(file, CONSOLE_LOG_KEPT, status.st_size - CONSOLE_LOG_KEPT)
                os.ftruncate(file, 0)
                os.pwrite(file, tail, 0)
        except OSError as error:  # for example a full disk: the other VMs' logs are cut
            say(f"{scope.console_log(vm)}: {error.strerror}")
        finally:
            os.close(file)


# networks and the host


def network(scope: Scope, verb: str) -> None:
    """Make or remove a network's bridge and rules."""
    from qsysd.runtime import bridges

    for line in (bridges.up if verb == "network-up" else bridges.down)(scope, os.environ):
        say(line)


def check_taps(scope: Scope) -> None:
    """Restore TAPs that a compromised QEMU changed, and rules that somebody flushed."""
    from qsysd.runtime import tampering, taps

    flushed = taps.restore_flushed(scope)
    lines = [f"nftables was flushed; restored the rules of {', '.join(flushed)}"] if flushed else []
    for line in (*lines, *tampering.repair(scope)):
        say(f"<4>{line}")  # a warning: sd-daemon(3)


VERBS = {"before-start": before_start, "ready": ready, "stop": stop, "after-stop": after_stop}


def main(arguments: list[str]) -> int:
    """Run a verb of the helper and return its exit status."""
    if len(arguments) != 2 or not is_name(arguments[1]):
        say(
            "usage: helper before-start|ready|stop|after-stop VM, "
            "network-up|network-down NETWORK, trim-logs all, check-taps all"
        )
        return InvalidError.code
    verb, name = arguments
    scope = Scope()
    try:
        if verb in VERBS:
            VERBS[verb](scope, name)
        elif verb in ("network-up", "network-down"):
            network(scope, verb)
        elif verb == "trim-logs":
            trim_logs(scope)
        elif verb == "check-taps":
            check_taps(scope)
        else:
            raise InvalidError(f"the helper has no verb {verb!r}")
    except QsysdError as error:
        say(f"{error.message}" + (f" ({error.hint})" if error.hint else ""))
        return error.code
    return 0

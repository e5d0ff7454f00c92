"""Check all that a host needs, and name the remedy for what it lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from qsysd import interface_names, network, paths, values
from qsysd.errors import QsysdError
from qsysd.host import divergence, helper_install, intents, recovery, rendering
from qsysd.host.context import Host
from qsysd.qemu.machine_types import PROGRAM
from qsysd.runtime import kvm, spawn, tampering, taps

FREE_SPACE_LOW = 5 * 1024**3  # bytes; a Debian guest takes a few GiB as it lives
PROGRAMS = ("qemu-img", "ip", "nft", "dnsmasq", "dhcp_release", "genisoimage", "ssh", "ssh-keygen")
BUILD_PROGRAMS = ("mmdebstrap",)


@dataclass(frozen=True)
class Finding:
    """What one check came to. level: `ok`, `warning` (VMs run, but …) or `missing` (they do not)."""

    level: str
    subject: str
    message: str
    remedy: str | None = None


def examine(host: Host) -> list[Finding]:
    """Check this host; never raises for what it finds. Root only, as it tries KVM as a VM would."""
    host.require_root()
    findings: list[Finding] = []
    for check in (
        _systemd, _programs, _setup, _devices, _kvm, _networks, _forwarding, _taps, _space, _sockets,
        _half_made, _definitions, _divergence,
    ):  # fmt: skip
        try:
            findings += check(host)
        except QsysdError as error:
            findings.append(Finding("missing", check.__name__.strip("_"), error.message, error.hint))
        except OSError as error:
            findings.append(Finding("missing", check.__name__.strip("_"), str(error)))
    return findings


def _systemd(host: Host) -> Iterator[Finding]:
    version = host.systemd.version()
    if version < 252:
        yield Finding("missing", "systemd", f"version {version} is too old", "Debian 12 or newer has 252")
    else:
        yield Finding("ok", "systemd", f"version {version} answers on the bus, {host.systemd.system_state()}")


def _programs(host: Host) -> Iterator[Finding]:
    del host
    if spawn.find(PROGRAM):
        words = spawn.run([PROGRAM, "--version"], timeout=10).stdout.partition("\n")[0]
        yield Finding("ok", "QEMU", words or "it does not tell its version")
    for program in (PROGRAM, *PROGRAMS):
        if not spawn.find(program):
            yield Finding("missing", program, "is not installed", f"apt install {spawn.PACKAGES[program]}")
    for program in BUILD_PROGRAMS:
        if not spawn.find(program):
            yield Finding(
                "warning",
                program,
                "is not installed: qsysd image build needs it",
                f"apt install {spawn.PACKAGES[program]}",
            )


def _setup(host: Host) -> Iterator[Finding]:
    needed = [host.scope.vms_dir, host.scope.intents_dir, host.scope.network_definition("default")]
    found = [path for path in needed if not os.path.exists(path)] + helper_install.differences(host)
    for path in found:
        problem = "is not as this version installs it" if os.path.lexists(path) else "does not exist"
        yield Finding("missing", "set-up", f"{path} {problem}", "qsysd setup")
    if not found:
        yield Finding("ok", "set-up", "units, helper and directories are as this version installs them")


def _devices(host: Host) -> Iterator[Finding]:
    del host
    tun = "/dev/net/tun"
    if not os.path.exists(tun):
        yield Finding("missing", "TAP", f"{tun} does not exist", "modprobe tun")
    elif os.stat(tun).st_mode & 0o006 != 0o006:
        yield Finding("missing", "TAP", f"{tun} is not open to QEMU's users", f"chmod 0666 {tun}")
    else:
        yield Finding("ok", "TAP", f"{tun} exists")


def _kvm(host: Host) -> Iterator[Finding]:
    kvm.ensure(host.scope, again=True)
    accel, reason = kvm.chosen(host.scope)
    if accel == "kvm":
        yield Finding("ok", "KVM", "it ran a guest")
    else:
        yield Finding(
            "warning", "KVM", f"VMs run under TCG, several times slower: {reason}",
            "switch virtualisation on in the firmware (in a cloud: nested), and load kvm_intel or kvm_amd",
        )  # fmt: skip


def _networks(host: Host) -> Iterator[Finding]:
    for name in host.store.network_names():
        spec = host.store.load_network(name)
        bridge = interface_names.bridge(name)
        units = (paths.network_unit(name), paths.dhcp_unit(name))
        down = [unit for unit in units if host.systemd.state(unit).active != "active"]
        if different := divergence.network_differences(host, spec):
            yield Finding(
                "warning",
                f"network {name}",
                f"its definition is not in effect; files that differ: {', '.join(different)}",
                "qsysd setup",
            )
        elif down:
            yield Finding(
                "missing",
                f"network {name}",
                f"{', '.join(down)} not active",
                f"systemctl restart {' '.join(down)}",
            )
        elif not os.path.isdir(f"/sys/class/net/{bridge}/bridge"):
            yield Finding(
                "missing",
                f"network {name}",
                f"its bridge {bridge} does not exist",
                f"systemctl restart {units[0]}",
            )
        else:
            yield Finding("ok", f"network {name}", f"{bridge} on {spec.subnet}, DHCP and DNS run")


def _forwarding(host: Host) -> Iterator[Finding]:
    found = False
    for name in host.store.network_names():
        for blocker in network.blockers(interface_names.bridge(name)):
            found = True
            yield Finding("warning", "forwarding", blocker.message, blocker.remedy)
    if not found:
        yield Finding("ok", "forwarding", "nothing blocks the guests' way out")


def _taps(host: Host) -> Iterator[Finding]:
    changes = tampering.find(host.scope)
    for change in changes:
        yield Finding("warning", change.vm, str(change), "systemctl start qsysd-taps.service")
    repaired = tampering.repaired()
    for vm, tap in repaired:
        done = "taken off its network" if taps.is_cut_off(tap) else "restored"
        yield Finding(
            "warning", vm, f"its QEMU changed the TAP {tap}, which was {done}: QEMU may be compromised",
            f"journalctl -u qsysd-taps.service; qsysd kill {vm}",
        )  # fmt: skip
    if not changes and not repaired:
        yield Finding("ok", "TAPs", "no QEMU has changed its TAP")


def _space(host: Host) -> Iterator[Finding]:
    for path in dict.fromkeys((host.scope.vms_dir, host.scope.images_dir)):
        if os.path.isdir(path):
            free = shutil.disk_usage(path).free
            level = "ok" if free > FREE_SPACE_LOW else "warning"
            remedy = None if level == "ok" else "a VM whose disk cannot grow is paused: free some space"
            yield Finding(level, "space", f"{values.human_size(free)} free under {path}", remedy)


def _sockets(host: Host) -> Iterator[Finding]:
    longest = host.scope.monitor("x" * 28, "ready")
    if len(longest) > paths.SOCKET_PATH_MAX:
        yield Finding(
            "missing",
            "sockets",
            f"{longest} is too long for a UNIX socket",
            f"shorten {host.scope.vms_dir}",
        )
    else:
        yield Finding("ok", "sockets", f"paths of at most {len(longest)} of {paths.SOCKET_PATH_MAX} bytes")


def _half_made(host: Host) -> Iterator[Finding]:
    for intent in intents.pending(host.scope):
        if recovery.is_known(intent):
            yield Finding(
                "warning", intent.name, f"a {intent.verb} is under way, or was killed", "qsysd recover"
            )
        else:
            yield Finding(
                "warning",
                intent.name,
                f"{intent.path} was left by a {intent.verb} of another version of qsysd",
                f"qsysd recover of that version; or, once {intent.name} is in order: rm {intent.path}",
            )
    for path in intents.unrecognized(host.scope):
        yield Finding(
            "warning",
            "intents",
            f"{values.printable(path)} is not an intent of qsysd's, and is ignored",
            f"ls -lab {host.scope.intents_dir}; move it to another directory",
        )


def _divergence(host: Host) -> Iterator[Finding]:
    for found in divergence.find(host):
        yield Finding("warning", found.vm, found.message, found.remedy)


def _definitions(host: Host) -> Iterator[Finding]:
    for name in host.store.names():
        try:
            spec, rendered = rendering.of_definition(host, name)
            different = host.store.differences(name, rendered)
            if spec.image:
                host.images.check(spec.image)
        except QsysdError as error:
            yield Finding("warning", name, error.message, error.hint)
            continue
        if different:
            yield Finding(
                "warning", name, f"{', '.join(different)} differs from its definition", f"qsysd render {name}"
            )

"""doctor: check everything that VMs need on a host, with a remedy for each problem."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from qsysd import interface_names, network, paths, values
from qsysd.errors import QsysdError
from qsysd.host import divergence, helper_install, intents, recovery, rendering
from qsysd.host.context import Host
from qsysd.qemu.machine_types import PROGRAM
from qsysd.runtime import kvm, spawn, tampering, taps

FREE_SPACE_LOW = 5 * 1024**3  # bytes; the disk of a Debian guest grows by a few GiB
PROGRAMS = ("qemu-img", "ip", "nft", "dnsmasq", "dhcp_release", "genisoimage", "ssh", "ssh-keygen")
BUILD_PROGRAMS = ("mmdebstrap",)


class Level(StrEnum):
    """The severity of a finding. MISSING: VMs cannot run; WARNING: they run, but something is wrong."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


OK, WARNING, MISSING = Level


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    subject: str
    message: str
    remedy: str | None = None


def examine(host: Host) -> list[Finding]:
    """Return the findings of all checks of this host; errors are findings, too. Root only: KVM is probed."""
    host.require_root()
    findings: list[Finding] = []
    for subject, check in CHECKS.items():
        try:
            findings += check(host)
        except QsysdError as error:
            findings.append(Finding(MISSING, subject, error.message, error.hint))
        except OSError as error:
            findings.append(Finding(MISSING, subject, str(error)))
    return findings


def _systemd(host: Host) -> Iterator[Finding]:
    version = host.systemd.version()
    if version < 252:
        yield Finding(MISSING, "systemd", f"version {version} is too old", "Debian 12 or newer has 252")
    else:
        yield Finding(OK, "systemd", f"version {version} answers on the bus, {host.systemd.system_state()}")


def _programs(_host: Host) -> Iterator[Finding]:
    if spawn.find(PROGRAM):
        version = spawn.run([PROGRAM, "--version"], timeout=10).stdout.partition("\n")[0]
        yield Finding(OK, "QEMU", version or "unknown version")
    for program in (PROGRAM, *PROGRAMS):
        if not spawn.find(program):
            yield Finding(MISSING, program, "is not installed", f"apt install {spawn.PACKAGES[program]}")
    for program in BUILD_PROGRAMS:
        if not spawn.find(program):
            yield Finding(
                WARNING,
                program,
                "is not installed: qsysd image build needs it",
                f"apt install {spawn.PACKAGES[program]}",
            )


def _setup(host: Host) -> Iterator[Finding]:
    needed = [host.scope.vms_dir, host.scope.intents_dir, host.scope.network_definition("default")]
    found = [path for path in needed if not os.path.exists(path)] + helper_install.differences(host)
    for path in found:
        problem = "differs from what this version installs" if os.path.lexists(path) else "does not exist"
        yield Finding(MISSING, "set-up", f"{path} {problem}", "qsysd setup")
    if not found:
        yield Finding(OK, "set-up", "units, helper and directories are those of this version")


def _devices(_host: Host) -> Iterator[Finding]:
    tun = "/dev/net/tun"
    if not os.path.exists(tun):
        yield Finding(MISSING, "TAP", f"{tun} does not exist", "modprobe tun")
    elif os.stat(tun).st_mode & 0o006 != 0o006:
        yield Finding(MISSING, "TAP", f"{tun} cannot be opened by QEMU's users", f"chmod 0666 {tun}")
    else:
        yield Finding(OK, "TAP", f"{tun} exists")


def _kvm(host: Host) -> Iterator[Finding]:
    kvm.ensure(host.scope, again=True)
    accel, reason = kvm.chosen(host.scope)
    if accel == "kvm":
        yield Finding(OK, "KVM", "a test guest ran")
    else:
        yield Finding(
            WARNING, "KVM", f"VMs run under TCG, several times slower: {reason}",
            "switch virtualisation on in the firmware (in a cloud: nested), and load kvm_intel or kvm_amd",
        )  # fmt: skip


def _networks(host: Host) -> Iterator[Finding]:
    for name in host.store.network_names():
        try:
            spec = host.store.load_network(name)
        except QsysdError as error:
            yield Finding(WARNING, f"network {name}", error.message, error.hint)
            continue
        bridge = interface_names.bridge(name)
        units = (paths.network_unit(name), paths.dhcp_unit(name))
        down = [unit for unit in units if host.systemd.state(unit).active != "active"]
        if different := divergence.network_differences(host, spec):
            yield Finding(
                WARNING,
                f"network {name}",
                f"its definition is not in effect; files that differ: {', '.join(different)}",
                "qsysd setup",
            )
        elif down:
            yield Finding(
                MISSING,
                f"network {name}",
                f"{', '.join(down)} not active",
                f"systemctl restart {' '.join(down)}",
            )
        elif not os.path.isdir(f"/sys/class/net/{bridge}/bridge"):
            yield Finding(
                MISSING,
                f"network {name}",
                f"its bridge {bridge} does not exist",
                f"systemctl restart {units[0]}",
            )
        else:
            yield Finding(OK, f"network {name}", f"{bridge} on {spec.subnet}, DHCP and DNS run")


def _forwarding(host: Host) -> Iterator[Finding]:
    found = False
    for name in host.store.network_names():
        for blocker in network.blockers(interface_names.bridge(name)):
            found = True
            yield Finding(WARNING, "forwarding", blocker.message, blocker.remedy)
    if not found:
        yield Finding(OK, "forwarding", "nothing blocks traffic from the guests")


def _taps(host: Host) -> Iterator[Finding]:
    changes = tampering.find(host.scope)
    for change in changes:
        yield Finding(WARNING, change.vm, str(change), "systemctl start qsysd-taps.service")
    repaired = tampering.repaired()
    for vm, tap in repaired:
        done = "detached from its bridge" if taps.is_cut_off(tap) else "restored"
        yield Finding(
            WARNING, vm, f"its QEMU changed the TAP {tap}, which was {done}: QEMU may be compromised",
            f"journalctl -u qsysd-taps.service; qsysd kill {vm}",
        )  # fmt: skip
    if not changes and not repaired:
        yield Finding(OK, "TAPs", "no QEMU has changed its TAP")


def _space(host: Host) -> Iterator[Finding]:
    for path in dict.fromkeys((host.scope.vms_dir, host.scope.images_dir)):
        if os.path.isdir(path):
            free = shutil.disk_usage(path).free
            level = OK if free > FREE_SPACE_LOW else WARNING
            remedy = None if level is OK else "a VM whose disk cannot grow is paused: free some space"
            yield Finding(level, "space", f"{values.human_size(free)} free under {path}", remedy)


def _sockets(host: Host) -> Iterator[Finding]:
    longest = host.scope.monitor("x" * 28, "ready")
    if len(longest) > paths.SOCKET_PATH_MAX:
        yield Finding(
            MISSING,
            "sockets",
            f"{longest} is too long for a UNIX socket",
            f"shorten {host.scope.vms_dir}",
        )
    else:
        yield Finding(OK, "sockets", f"paths of at most {len(longest)} of {paths.SOCKET_PATH_MAX} bytes")


def _intents(host: Host) -> Iterator[Finding]:
    for intent in intents.pending(host.scope):
        if recovery.is_known(intent):
            yield Finding(
                WARNING, intent.name, f"a {intent.verb} is in progress, or was killed", "qsysd recover"
            )
        else:
            yield Finding(
                WARNING,
                intent.name,
                f"{intent.path} was left by a {intent.verb} of another version of qsysd",
                f"qsysd recover of that version; or, when {intent.name} is complete: rm {intent.path}",
            )
    for path in intents.unrecognized(host.scope):
        yield Finding(
            WARNING,
            "intents",
            f"{values.printable(path)} is not an intent, and is ignored",
            f"ls -lab {host.scope.intents_dir}; move it to another directory",
        )


def _divergence(host: Host) -> Iterator[Finding]:
    for found in divergence.find(host):
        yield Finding(WARNING, found.vm, found.message, found.remedy)


def _definitions(host: Host) -> Iterator[Finding]:
    for name in host.store.names():
        try:
            spec, rendered = rendering.of_definition(host, name)
            different = host.store.differences(name, rendered)
            if spec.image:
                host.images.check(spec.image)
        except QsysdError as error:
            yield Finding(WARNING, name, error.message, error.hint)
            continue
        if different:
            yield Finding(
                WARNING,
                name,
                f"{', '.join(different)} differs from its definition",
                f"qsysd render {name}",
            )


# The checks by the subject of the finding for a check that cannot be completed.
CHECKS: dict[str, Callable[[Host], Iterable[Finding]]] = {
    "systemd": _systemd,
    "programs": _programs,
    "set-up": _setup,
    "TAP": _devices,
    "KVM": _kvm,
    "networks": _networks,
    "forwarding": _forwarding,
    "TAPs": _taps,
    "space": _space,
    "sockets": _sockets,
    "intents": _intents,
    "definitions": _definitions,
    "divergence": _divergence,
}

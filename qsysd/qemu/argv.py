"""Spec → the argument list of QEMU, pure (qemu-system-x86_64(1)).

The accelerator is not in it: `auto` is decided on the host at each start, and comes before these
arguments in a variable of its own.
"""

from __future__ import annotations

from qsysd import paths
from qsysd.model.vm import Accel, VMSpec
from qsysd.paths import Scope
from qsysd.runtime.kvm import CPU_MODELS

# Each monitor socket serves one client; whoever holds one must not be in the way of the others.
MONITORS = ("cli", "ready", "stop")


def comma(value: str) -> str:
    """Return a value as it stands in an option list: a comma is doubled."""
    return value.replace(",", ",,")


def build(spec: VMSpec, scope: Scope) -> list[str]:
    """Return QEMU's arguments for a VM, without the program and the accelerator."""
    return [
        *_machine(spec),
        *_monitors(spec, scope),
        *_console(spec, scope),
        *_disks(spec, scope),
        *_nics(spec),
        *_kernel(spec),
        *spec.qemu_args,
    ]


def _machine(spec: VMSpec) -> list[str]:
    return [
        "-name", f"guest={spec.name},debug-threads=on",
        "-uuid", spec.uuid,
        "-nodefaults",
        "-no-user-config",
        "-machine", comma(spec.machine),
        "-m", f"size={spec.memory_mib}M",
        "-smp", f"cpus={spec.cpus}",
        "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        # Guests draw on it at first boot, when ssh makes its keys.
        "-object", "rng-builtin,id=rng0",
        "-device", "virtio-rng-pci,id=rng0-device,rng=rng0",
    ]  # fmt: skip


def _monitors(spec: VMSpec, scope: Scope) -> list[str]:
    arguments: list[str] = []
    for purpose in MONITORS:
        socket = comma(scope.monitor(spec.name, purpose))
        arguments += [
            "-chardev", f"socket,id=monitor-{purpose},path={socket},server=on,wait=off",
            "-mon", f"chardev=monitor-{purpose},mode=control",
        ]  # fmt: skip
    return arguments


def _console(spec: VMSpec, scope: Scope) -> list[str]:
    socket, log = comma(scope.console(spec.name)), comma(scope.console_log(spec.name))
    return [
        "-chardev", f"socket,id=console,path={socket},server=on,wait=off,logfile={log},logappend=on",
        "-serial", "chardev:console",
    ]  # fmt: skip


def disk_count(spec: VMSpec) -> int:
    """Return how many disks a VM has: an image brings one by itself."""
    return max(len(spec.disks), 1 if spec.image else 0)


def _disks(spec: VMSpec, scope: Scope) -> list[str]:
    arguments: list[str] = []
    for index in range(disk_count(spec)):
        path = comma(scope.overlay(spec.name, index))
        arguments += [
            "-blockdev", f"driver=file,node-name=disk{index}-file,filename={path},discard=unmap",
            "-blockdev", f"driver=qcow2,node-name=disk{index},file=disk{index}-file,discard=unmap",
            # An I/O error (a full disk) pauses the VM: nothing is lost, and `resume` tries again.
            "-device", f"virtio-blk-pci,id=disk{index}-device,drive=disk{index},bootindex={index + 1},"
                       "werror=stop,rerror=stop",
        ]  # fmt: skip
    if spec.seed:
        arguments += [
            "-blockdev", f"driver=file,node-name=seed,filename={comma(scope.seed(spec.name))},read-only=on",
            "-device", "virtio-blk-pci,id=seed-device,drive=seed",
        ]  # fmt: skip
    return arguments


def _nics(spec: VMSpec) -> list[str]:
    arguments: list[str] = []
    for index, nic in enumerate(spec.nics):
        arguments += [
            "-netdev", f"tap,id=net{index},ifname={paths.tap(spec.name, index)},script=no,downscript=no",
            # No option ROM: a VM boots from its disk or kernel, and the ROM costs start-up time.
            "-device", f"virtio-net-pci,id=net{index}-device,netdev=net{index},mac={nic.mac},romfile=",
        ]  # fmt: skip
    return arguments


def _kernel(spec: VMSpec) -> list[str]:
    if spec.kernel is None:
        return []
    arguments = ["-kernel", spec.kernel.path]
    if spec.kernel.initrd:
        arguments += ["-initrd", spec.kernel.initrd]
    if spec.kernel.append:
        arguments += ["-append", spec.kernel.append]
    return arguments


def accelerator(accel: Accel) -> list[str]:
    """Return the arguments that choose kvm or tcg."""
    return ["-accel", accel.value]


def processor(accel: Accel, cpu: str | None) -> list[str]:
    """Return the arguments that choose the CPU model, under kvm or tcg."""
    return ["-cpu", cpu or CPU_MODELS[accel.value]]

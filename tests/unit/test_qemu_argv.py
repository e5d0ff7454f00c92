"""QEMU's arguments by feature; complete command lines are in tests/golden."""

from __future__ import annotations

import pytest
from samples import UUID, vm

from qsysd.model.boot import Kernel
from qsysd.model.disk import Disk
from qsysd.model.nic import Nic
from qsysd.model.vm import Accel
from qsysd.paths import Scope
from qsysd.qemu import argv, machine

SCOPE = Scope()


def options(arguments: list[str], name: str) -> list[str]:
    """Return the values of an option."""
    return [arguments[index + 1] for index, word in enumerate(arguments) if word == name]


def build(root: str = "/", **changes: object) -> list[str]:
    return argv.build(vm(**changes), Scope(root))


def fields(value: str) -> dict[str, str]:
    """Return an option list as QEMU reads it: parts between single commas, a doubled one is a comma."""
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    return dict(part.partition("=")[::2] for part in parts)


def test_identity_and_size() -> None:
    arguments = build()
    assert options(arguments, "-name") == ["guest=web1,debug-threads=on"]
    assert options(arguments, "-uuid") == [UUID]
    assert options(arguments, "-machine") == ["pc-q35-7.2"]
    assert options(arguments, "-m") == ["size=512M"]
    assert options(arguments, "-smp") == ["cpus=2"]
    # no options from configuration files of the host
    assert {"-nodefaults", "-no-user-config"} <= set(arguments)


def test_the_sandbox_denies_programs_and_privileges() -> None:
    (value,) = options(build(), "-sandbox")
    assert value == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def test_each_purpose_has_a_dedicated_monitor() -> None:
    arguments = build()
    sockets = [fields(value) for value in options(arguments, "-chardev") if "monitor" in value]
    assert [socket["path"] for socket in sockets] == [
        SCOPE.monitor("web1", purpose) for purpose in ("cli", "ready", "stop")
    ]
    assert all(socket["server"] == "on" and socket["wait"] == "off" for socket in sockets)
    monitors = [fields(value) for value in options(arguments, "-mon")]
    assert [monitor["chardev"] for monitor in monitors] == [socket["id"] for socket in sockets]
    assert all(monitor["mode"] == "control" for monitor in monitors)


def test_the_console_is_a_socket_and_a_log() -> None:
    (console,) = [fields(value) for value in options(build(), "-chardev") if "console" in value]
    assert (console["path"], console["logfile"]) == (SCOPE.console("web1"), SCOPE.console_log("web1"))
    assert options(build(), "-serial") == ["chardev:console"]


def test_a_comma_in_a_path_is_doubled() -> None:
    arguments = build("/srv/a,b", disks=(Disk("disk0", 1),))
    scope = Scope("/srv/a,b")
    files = [fields(value)["filename"] for value in options(arguments, "-blockdev") if "filename" in value]
    assert files == [scope.overlay("web1"), scope.seed("web1")]
    sockets = [fields(value)["path"] for value in options(arguments, "-chardev")]
    assert sockets[-1] == scope.console("web1")


@pytest.mark.parametrize(
    ("image", "disks", "count"),
    [
        ("debian", (), 1),
        ("debian", (Disk("disk0", 1),), 1),
        ("debian", (Disk("disk0", 1), Disk("disk1", 2)), 2),
        (None, (), 0),
        (None, (Disk("disk0", 1),), 1),
    ],
)
def test_a_vm_with_an_image_has_a_disk(image: str | None, disks: tuple[Disk, ...], count: int) -> None:
    spec = vm(image=image, disks=disks, seed=False)
    assert len(spec.effective_disks) == count
    arguments = argv.build(spec, SCOPE)
    devices = [fields(value) for value in options(arguments, "-device") if "virtio-blk" in value]
    assert [device["drive"] for device in devices] == [f"disk{index}" for index in range(count)]
    assert [device["bootindex"] for device in devices] == [str(index + 1) for index in range(count)]
    # A full disk of the host pauses the VM.
    assert all((device["werror"], device["rerror"]) == ("stop", "stop") for device in devices)


def test_the_seed_is_read_only_and_comes_last() -> None:
    values = options(build(), "-blockdev")
    assert fields(values[-1]) == {
        "driver": "file", "node-name": "seed", "filename": SCOPE.seed("web1"), "read-only": "on",
    }  # fmt: skip
    assert not any("seed" in value for value in build(seed=False))


def test_each_nic_has_its_tap_and_its_mac() -> None:
    nics = (
        Nic("net0", "default", "52:54:00:00:00:01", "10.83.0.10"),
        Nic("net1", "lan", "52:54:00:00:00:02"),
    )
    arguments = build(nics=nics)
    netdevs = [fields(value) for value in options(arguments, "-netdev")]
    assert [netdev["ifname"] for netdev in netdevs] == ["qv-web1-0", "qv-web1-1"]
    # QEMU runs no scripts for its network.
    assert all((netdev["script"], netdev["downscript"]) == ("no", "no") for netdev in netdevs)
    devices = [fields(value) for value in options(arguments, "-device") if "virtio-net" in value]
    assert [device["mac"] for device in devices] == [nic.mac for nic in nics]
    assert [device["netdev"] for device in devices] == [netdev["id"] for netdev in netdevs]


def test_a_vm_without_nics_has_no_netdev() -> None:
    assert not options(build(nics=()), "-netdev")


def test_direct_kernel_boot() -> None:
    arguments = build(kernel=Kernel("/srv/vmlinuz", "/srv/initrd", 'console=ttyS0 x="a, b"'))
    assert options(arguments, "-kernel") == ["/srv/vmlinuz"]
    assert options(arguments, "-initrd") == ["/srv/initrd"]
    # The value is not an option list: commas are not doubled.
    assert options(arguments, "-append") == ['console=ttyS0 x="a, b"']


def test_a_kernel_without_initrd_and_command_line() -> None:
    arguments = build(kernel=Kernel("/srv/vmlinuz"))
    assert not options(arguments, "-initrd") + options(arguments, "-append")
    assert not options(build(), "-kernel")


def test_qemu_args_come_last_and_unchanged() -> None:
    own = ("-device", "usb-ehci,id=usb0", "-name", "a,b")
    assert build(qemu_args=own)[-4:] == list(own)


def test_ids_are_unique() -> None:
    arguments = build(
        disks=(Disk("disk0", 1), Disk("disk1", 2)),
        nics=(Nic("net0", "a", "52:54:00:00:00:01"), Nic("net1", "b", "52:54:00:00:00:02")),
    )
    ids = [
        found
        for name in ("-chardev", "-netdev", "-device", "-blockdev", "-object")
        for value in options(arguments, name)
        if (found := fields(value).get("id") or fields(value).get("node-name"))
    ]
    assert len(set(ids)) == len(ids)


def test_accelerator_and_cpu_model_are_separate_arguments() -> None:
    for accel in Accel:
        assert "-accel" not in build(accel=accel)
        assert "-cpu" not in build(accel=accel)
    assert machine.accelerator(Accel.KVM) == ["-accel", "kvm"]
    assert machine.processor(Accel.KVM, None) == ["-cpu", "host"]
    assert machine.processor(Accel.TCG, None) == ["-cpu", "max,erms=off,fsrm=off"]
    assert machine.processor(Accel.KVM, "Haswell,-vmx") == ["-cpu", "Haswell,-vmx"]

"""The verb before-start: prepare, as root, what QEMU itself may not create."""

from __future__ import annotations

import os
import stat

from qsysd.digests import digest
from qsysd.errors import HostError
from qsysd.files import read_bytes
from qsysd.paths import DROP_IN_MARK, Scope
from qsysd.runtime import roots, taps, trees, vm_directory
from qsysd.runtime.ports import parse_ports
from qsysd.runtime.unit import log, variable

DIGITS = "0123456789"
HEXADECIMAL = "0123456789abcdef"


def before_start(scope: Scope, vm: str) -> None:
    """Check what the VM starts with, and create its root directory and TAPs.

    The root directory is created first and removed last: while it exists, `after-stop` has work to do.
    """
    check_rendering(scope, vm)
    check_image(scope)
    ports = parse_ports(os.environ.get("QSYSD_NICS", ""))
    accelerator = accelerator_in_force(scope)
    check_boot_files()
    if os.path.exists(scope.shutdown_mark):
        os.unlink(scope.shutdown_mark)  # a soft reboot keeps /run
    roots.make(scope.root_dir(vm))
    # systemd created the RuntimeDirectory for the uid that it chose for this start.
    user = os.stat(scope.runtime(vm))
    vm_directory.set_owner(scope.vm_dir(vm), user.st_uid, user.st_gid)
    taps.plug(scope, ports, user.st_uid, vm)
    record_start(scope, vm, accelerator)


def check_rendering(scope: Scope, vm: str) -> None:
    """Check that this start uses what the VM's definition renders to.

    Raise HostError where systemd has not loaded the drop-in that the environment file belongs to: the
    start would lack its ordering, timeout and mounts. A changed definition is only reported.
    """
    expected = os.environ.get("QSYSD_EXPECTED_DROP_IN", "")  # older environment files do not have it
    if expected and os.environ.get(DROP_IN_MARK, "") != expected:
        raise HostError(f"systemd has not loaded {scope.drop_in(vm)} as rendered", hint=f"qsysd render {vm}")
    rendered_from = os.environ.get("QSYSD_DEFINITION", "")
    definition = read_bytes(scope.definition(vm))
    if definition is None:
        log(f"{scope.definition(vm)} does not exist; this start uses what was rendered from it")
    elif rendered_from and digest(definition) != rendered_from:
        log(
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
    metadata = (read_bytes(scope.image_metadata(image)) or b"").decode("utf-8", "replace")
    fields = dict(line.split(": ", 1) for line in metadata.splitlines() if ": " in line)
    try:
        size = str(os.stat(scope.image(image)).st_size)
    except OSError as error:
        raise HostError(f"{scope.image(image)}: {error.strerror}", hint="qsysd image list") from error
    # An image without metadata cannot be compared.
    if fields.get("sha256", expected).strip("'\"") != expected or fields.get("file_size", size) != size:
        raise HostError(
            f"image {image} is not the one that the VM's disk was created on",
            hint=f"restore the image with the SHA-256 {expected}; qsysd doctor",
        )


def accelerator_in_force(scope: Scope) -> str:
    """Return the accelerator that QEMU is started with: kvm or tcg."""
    chosen = os.environ.get("QSYSD_ACCEL")
    if chosen is None:
        # The first start since the host booted: systemd reads the file again for QEMU itself.
        from qsysd.runtime import kvm

        return kvm.chosen(scope)[0]
    return "kvm" if chosen.split()[-1:] == ["kvm"] else "tcg"


def check_boot_files() -> None:
    """Raise HostError where kernel or initrd are not regular files that QEMU's user can read."""
    for path in filter(None, os.environ.get("QSYSD_READ_FILES", "").split(":")):
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from error
        if not stat.S_ISREG(mode):
            raise HostError(f"{path} is not a file")  # QEMU would see all that is in a directory
        if not mode & 0o004:
            raise HostError(f"{path} cannot be read by the VM's user", hint=f"chmod o+r {path}")


def record_start(scope: Scope, vm: str, accelerator: str) -> None:
    """Record what the VM is started with, for `list` and `status`."""
    lines = (
        variable("QSYSD_DIGEST", HEXADECIMAL, range(16, 17)),
        f"QSYSD_MEMORY_MIB={variable('QSYSD_MEMORY_MIB', DIGITS, range(10))}",
        f"QSYSD_CPUS={variable('QSYSD_CPUS', DIGITS, range(10))}",
        f"QSYSD_ACCELERATOR={accelerator}",
    )
    os.makedirs(scope.started_dir, mode=0o755, exist_ok=True)
    if os.path.isdir(scope.started_record(vm)):
        trees.remove(scope.started_record(vm))
    with open(scope.started_record(vm), "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")

"""Whether KVM can run a guest on this host: tried once, recorded until the host boots again.

/dev/kvm may exist and not work: on some nested hosts QEMU aborts on an MSR, or a guest is very slow or
hangs. So a guest of 190 bytes is run: it sets up page tables, enters long mode, counts to a million,
executes CPUID and exits through QEMU's isa-debug-exit device. KVM is used if this guest exits in time
with the CPU model that VMs get.
"""

from __future__ import annotations

import os

from qsysd.errors import HostError
from qsysd.files import read_bytes, write_atomic
from qsysd.paths import Scope

# Accelerator → the default CPU model: all features of the processor, or of TCG without two. Guests copy
# memory by fast string instructions where they exist, which TCG executes byte by byte; without them a
# Debian guest boots to its prompt in a tenth less time.
CPU_MODELS = {"kvm": "host", "tcg": "max,erms=off,fsrm=off"}

# Assembled from (multiboot, loaded at 1 MiB):
#         .long 0x1BADB002, 0x10000, -0x1BADC002       multiboot header, flat image
#         .long 0x100000, 0x100000, 0, 0, entry
# entry:  zero PML4, PDPT, PD at 2 MiB; map 4 GiB in 2 MiB pages
#         cr4.PAE, cr3, EFER.LME, cr0.PG, lgdt, ljmp $8, $long
# long:   movl $1000000, %ecx; 1: decl %ecx; jnz 1b
#         cpuid; movb $0x2a, %al; outb %al, $0xf4      ends QEMU with status 0x2a << 1 | 1
_GUEST = (
    "ArCtGwAAAQD+T1HkAAAQAAAAEAAAAAAAAAAAACAAEAC/AAAgADHAuQAMAADzq8cFAAAgAAMQIADHBQAQIAADICAAvwAgIAC4gwAA"
    "AIkHg8cIBQAAIABz9A8g4IPIIA8i4LgAACAADyLYuYAAAMAPMg0AAQAADzAPIMANAAAAgA8iwA8BFbgAEADqkAAQAAgAuUBCDwD/"
    "yXX8D6KwKub09Ov9Zg8fRAAAAAAAAAAAAAAAAAAAAJogAA8AqAAQAA=="
)
_EXIT_STATUS = 0x2A << 1 | 1
PROBE_TIMEOUT = 3.0  # seconds; a working KVM needs 0.1


def probe() -> str | None:
    """Run the guest under KVM. Return None if it worked, else the reason why KVM cannot be used."""
    import base64
    import tempfile

    from qsysd.errors import TimeoutExpired
    from qsysd.runtime import spawn

    if not os.path.exists("/dev/kvm"):
        return "/dev/kvm does not exist"
    with tempfile.NamedTemporaryFile(prefix="qsysd-probe-") as kernel:
        kernel.write(base64.b64decode(_GUEST))
        kernel.flush()
        try:
            done = spawn.run(
                [
                    "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                    "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "32", "-kernel", kernel.name,
                    "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
                ],
                timeout=PROBE_TIMEOUT,
                check=False,
            )  # fmt: skip
        except TimeoutExpired:
            return f"a guest of a million instructions did not end within {PROBE_TIMEOUT:g} s"
    if done.returncode != _EXIT_STATUS:
        return spawn.last_words(done.stderr) or f"QEMU ended with status {done.returncode}"
    return None


def ensure(scope: Scope, *, again: bool = False) -> None:
    """Write the file with the accelerator for VMs with `accel: auto`, if it does not exist.

    The file is in /run, so it lasts until the host boots again. VMs that start at the same time wait for
    one probe. again: probe even if the file exists.
    """
    if _known(scope) and not again:
        return
    import fcntl

    os.makedirs(scope.runtime_dir, mode=0o755, exist_ok=True)
    with open(f"{scope.acceleration_file}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _known(scope) and not again:
            return
        reason = probe()
        accel = "tcg" if reason else "kvm"
        # Before systemd 254, a backslash at the end of a comment continues it on the next line.
        text = "".join(filter(str.isprintable, reason or "")).rstrip("\\")
        comment = f"# tcg: {text}" if reason else "# kvm: it ran a guest"
        write_atomic(scope.acceleration_file, f"{comment}\n{_settings(accel)}", 0o644)


def _known(scope: Scope) -> tuple[str, str] | None:
    """Return the accelerator and the reason in the file, None if it is missing or damaged."""
    first, _, rest = (read_bytes(scope.acceleration_file) or b"").decode("utf-8", "replace").partition("\n")
    accel, _, reason = first.removeprefix("# ").partition(": ")
    return (accel, reason) if accel in CPU_MODELS and rest == _settings(accel) else None


def _settings(accel: str) -> str:
    """Return the lines of the file that units read."""
    return f"QSYSD_ACCEL=-accel {accel}\nQSYSD_CPU=-cpu {CPU_MODELS[accel]}\n"


def chosen(scope: Scope) -> tuple[str, str]:
    """Return the accelerator for `accel: auto` on this host, and the reason; probe if it is unknown."""
    ensure(scope)
    known = _known(scope)
    if known is None:
        raise HostError(f"{scope.acceleration_file} is damaged", hint=f"rm {scope.acceleration_file}")
    return known

"""What all measurements in the host share: commands, clocks, and guests that become ready."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

# The options of the tiny guest, written by the program that controls the host.
TINY = json.loads(Path(__file__).with_name("tiny.json").read_text())

READY_TIMEOUT = 600.0
# After its last message a guest is busy for a moment.
SETTLE = 1.0
# Seconds between two looks at a file.
POLL = 0.002


def run(*argv: str) -> str:
    """Run a command and return its output; end the benchmark with its message if it fails."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def wait_until(condition: Callable[[], bool], what: str, poll: float = 0.05) -> None:
    """Wait for a condition; end the benchmark if it does not become true."""
    deadline = time.monotonic() + READY_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not seen within {READY_TIMEOUT:.0f} s")
        time.sleep(poll)


def is_ready(log: Path) -> bool:
    """Return whether a guest has said on its console that it is ready."""
    return log.exists() and "TINY READY" in log.read_text(errors="replace")


def wait_ready(logs: Sequence[Path]) -> None:
    """Wait for guests by their console logs, and remove these, so that the next boot has new ones."""
    for log in logs:
        wait_until(partial(is_ready, log), str(log))
    time.sleep(SETTLE)
    for log in logs:
        log.unlink()


def remove(path: Path) -> None:
    """Remove a file or directory, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def floor() -> None:
    """Run what no command can do without: Python, its packages, and a connection to the bus."""
    program = (
        "import os, sys\n"
        "sys.path.append('/usr/lib/python3/dist-packages')\n"
        "import click, pydbus\n"
        "pydbus.SystemBus()\n"
        "os._exit(0)\n"
    )
    run("/usr/bin/python3", "-I", "-S", "-c", program)


def in_turns(runs: int, steps: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Return the seconds of each step, run in turns: what disturbs the machine disturbs all of them."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            found[name].append(step())
    return found


def qemu_started(names: Sequence[str]) -> float:
    """Wait until all QEMUs run; return the seconds from PID 1's start until the last was started."""
    found: dict[str, float] = {}

    def all_run() -> bool:
        found.update(started_of_qemus())
        return all(name in found for name in names)

    wait_until(all_run, "all QEMUs", poll=0.2)
    userspace = run("systemctl", "show", "--value", "--property=UserspaceTimestampMonotonic")
    return max(found[name] for name in names) - int(userspace) / 1e6


def started_of_qemus() -> dict[str, float]:
    """Return when each QEMU was started, by VM name: seconds since the machine's boot."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            argv = (process / "cmdline").read_text(errors="replace").split("\0")
            # proc(5): the name in parentheses may have blanks; the start is the 20th field after it.
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.path.basename(argv[0]).startswith("qemu-system") and "-name" in argv:
            guest = argv[argv.index("-name") + 1].removeprefix("guest=").partition(",")[0]
            found[guest] = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return found

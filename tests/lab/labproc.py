"""What every part of the lab needs: commands, words to the person, locks, files, processes.

The lab runs on a machine that it must leave as it found it, so the two rules kept here are: a file
is written whole or not at all, and a process is only ever touched after it was proven to be the one
that the lab started (its id alone proves nothing, ids are used again).
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

T = TypeVar("T")

# Seconds between two looks at a condition.
POLL = 0.05


class LabError(Exception):
    """Something failed; the message is all that a person needs, no traceback is shown."""


def clean_environment() -> dict[str, str]:
    """Return the environment of every external command: English messages, the administrator's PATH."""
    names = ("HOME", "QSYSD_LAB_CACHE", "TERM", "TMPDIR")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return {"LANG": "C.UTF-8", "PATH": SYSTEM_PATH, **proxies, **kept}


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    check: bool = True,
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
    shown: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a program with a deadline of `timeout` seconds and return what it said.

    Raise LabError when it cannot be run, runs out of time or, with `check`, ends with a status
    other than zero; `shown` is what the error calls the command.
    """
    shown = shown or shlex.join(argv)
    if os.environ.get("QSYSD_LAB_DEBUG"):
        print("+", shlex.join(argv), file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            env={**clean_environment(), **(environment or {})},
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is missing: run `make lab-setup`") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{shown}: no end after {timeout:g} s") from error
    if check and done.returncode != 0:
        words = "\n".join(text.strip()[-2000:] for text in (done.stdout, done.stderr) if text.strip())
        raise LabError(f"{shown} ended with {done.returncode}: {words or 'it said nothing'}")
    return done


def say(message: str) -> None:
    """Tell the person at the terminal, apart from what commands print."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


class Progress:
    """A word on what is being waited for, said only when it takes more than two seconds."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = time.monotonic()
        self.next = self.started + 2
        self.spoken = False

    def tick(self, detail: str = "") -> None:
        """Say something if it is time to: after 2 s, then every 10 s."""
        now = time.monotonic()
        if now >= self.next:
            self.spoken = True
            self.next = now + 10
            say(f"{self.what}: {now - self.started:.0f} s so far{f', {detail}' if detail else ''}")

    def done(self) -> None:
        """Say how long it took, if it was long enough to be mentioned before."""
        if self.spoken:
            say(f"{self.what}: done after {time.monotonic() - self.started:.0f} s")


def wait_until(condition: Callable[[], T | None], *, timeout: float, what: str, poll: float = POLL) -> T:
    """Return the first true value of `condition`, looked at every `poll` seconds.

    Raise LabError after `timeout` seconds, naming `what` was waited for.
    """
    progress = Progress(what)
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            progress.done()
            return value
        if time.monotonic() >= deadline:
            raise LabError(f"{what}: not seen within {timeout:.0f} s")
        progress.tick()
        time.sleep(poll)


@contextmanager
def locked(path: Path, what: str, *, timeout: float = 1800) -> Iterator[int]:
    """Hold an exclusive lock on `path`, a file that is never removed, or a directory.

    The kernel drops it with its holder, so no crash leaves a lock behind. The lock's descriptor is
    yielded: a child that inherits it holds the lock as well.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        wait_until(lambda: try_lock(descriptor), timeout=timeout, what=f"waiting for {what}")
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock if nobody holds it, and say whether it was taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a crash, finds the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.chmod(mode)
    part.rename(path)


@dataclass(frozen=True)
class Process:
    """A process that is told apart from a later one with the same id by its start time (clock ticks)."""

    pid: int
    start: int

    @staticmethod
    def of(pid: int) -> Process | None:
        """Return the running process with this id, or None; one that has ended but was not reaped is gone."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in parentheses may hold blanks: count from behind it (proc(5): state is field 3, start 22).
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else Process(pid, int(fields[19]))

    def alive(self) -> bool:
        """Say whether this very process still runs."""
        return Process.of(self.pid) == self

    def command_line(self) -> list[str]:
        """Return its arguments, none if it is gone."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def children(self) -> list[Process]:
        """Return the processes that it started and that still run."""
        try:
            ids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [child for child in (Process.of(int(pid)) for pid in ids) if child]

    def signal(self, number: int) -> None:
        """Send a signal to this process only: a descriptor pins it, so its id cannot change hands."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return
        finally:
            os.close(descriptor)

"""Shared functions of the lab: commands, messages, locks, files, processes.

The lab must not change the machine. Files are written atomically. A process is signalled only after it
was identified as one that the lab started; its ID is not sufficient, because IDs are reused.
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

# Seconds between two checks of a condition.
POLL = 0.05


class LabError(Exception):
    """An expected failure: its message is shown without a traceback."""


def clean_environment() -> dict[str, str]:
    """Return the environment for external commands: English messages, the PATH of the administrator."""
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
    """Run a program and return its output. timeout: seconds. shown: the command in error messages.

    Raise LabError if it cannot be run or exceeds the timeout, or if `check` is set and its exit status
    is not 0.
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
        raise LabError(f"{shown}: not finished after {timeout:g} s") from error
    if check and done.returncode != 0:
        output = "\n".join(text.strip()[-2000:] for text in (done.stdout, done.stderr) if text.strip())
        raise LabError(f"{shown} failed with exit status {done.returncode}: {output or 'no output'}")
    return done


def say(message: str) -> None:
    """Print a message to standard error."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


class Progress:
    """Reports of a wait, if it takes more than two seconds."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = time.monotonic()
        self.next = self.started + 2
        self.reported = False

    def tick(self, detail: str = "") -> None:
        """Report the wait if due: after 2 s, then every 10 s."""
        now = time.monotonic()
        if now >= self.next:
            self.reported = True
            self.next = now + 10
            say(f"{self.what}: {now - self.started:.0f} s so far{f', {detail}' if detail else ''}")

    def done(self) -> None:
        """Report the duration, if the wait was reported before."""
        if self.reported:
            say(f"{self.what}: done after {time.monotonic() - self.started:.0f} s")


def wait_until(condition: Callable[[], T | None], *, timeout: float, what: str, poll: float = POLL) -> T:
    """Return the first true value of `condition`, which is called every `poll` seconds.

    Raise LabError after `timeout` seconds. what: the condition in messages.
    """
    progress = Progress(what)
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            progress.done()
            return value
        if time.monotonic() >= deadline:
            raise LabError(f"{what}: timed out after {timeout:.0f} s")
        progress.tick()
        time.sleep(poll)


@contextmanager
def locked(path: Path, what: str, *, timeout: float = 1800) -> Iterator[int]:
    """Hold an exclusive lock on `path`, a file that is never removed, or a directory.

    The kernel releases the lock when its holder exits. Yields the file descriptor: a child process that
    inherits it holds the lock, too.
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
    """Take the lock if it is free; return whether it was taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.chmod(mode)
    part.rename(path)


@dataclass(frozen=True)
class Process:
    """A process, identified by its ID and its start time (clock ticks), because IDs are reused."""

    pid: int
    start: int

    @staticmethod
    def of(pid: int) -> Process | None:
        """Return the running process with this ID, None if it does not exist or is a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in parentheses can contain blanks (proc(5): state is field 3, start 22).
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else Process(pid, int(fields[19]))

    def alive(self) -> bool:
        """Return whether this process still runs."""
        return Process.of(self.pid) == self

    def command_line(self) -> list[str]:
        """Return its arguments, none if it has exited."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def children(self) -> list[Process]:
        """Return its child processes that still run."""
        try:
            ids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [child for child in (Process.of(int(pid)) for pid in ids) if child]

    def signal(self, number: int) -> None:
        """Send a signal to this process, by a pidfd, so that no other process with its ID gets it."""
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

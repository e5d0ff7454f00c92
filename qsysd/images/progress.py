"""Lines of progress while an image is built or imported: one for each step, and one every TICK seconds."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable

from qsysd.runtime import spawn
from qsysd.values import printable

Progress = Callable[[str], None]

TICK = 3.0  # seconds between two lines

# What mmdebstrap and the build script print when a step begins.
STEPS = (
    ("I: running apt-get update", "reading package lists"),
    ("I: downloading packages", "downloading the base system"),
    ("I: extracting archives", "unpacking the base system"),
    ("I: installing essential packages", "installing the base system"),
    ("I: installing remaining packages", "downloading the packages"),
    ("qsysd: initramfs", "creating the initramfs"),
    ("qsysd: file system", "creating the file system"),
    ("qsysd: compressing", "packing the image"),
)
ERRORS = re.compile(r"(E|dpkg|mke2fs|qemu-img|cp|mount|unshare|sh): ")


def quiet(_line: str) -> None:
    """Discard progress."""


class Ticker:
    """Reports progress at most every TICK seconds."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._started = self._reported = clock()

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return self._clock() - self._started

    def tick(self, line: str, *, now: bool = False) -> None:
        """Report a line of progress if one is due, or in any case if `now` is set."""
        if now or self._clock() - self._reported >= TICK:
            self._reported = self._clock()
            self._progress(line)


class BuildProgress:
    """The progress of a build, from the output of apt, dpkg and the build script."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._ticker = Ticker(progress, clock)
        self._step = "preparing"
        self._total = 0
        self._done = 0
        self._lines: deque[str] = deque(maxlen=200)
        self.packages = 0

    def update(self, line: str | None) -> None:
        """Parse one line of output (None: nothing for a second) and report progress when due."""
        before = self._step
        if line:
            self._lines.append(printable(line))
            self._parse(line)
        text = f"{self._step}{self._count()} ({self._ticker.elapsed():.0f} s)"
        self._ticker.tick(text, now=self._step != before)

    def _parse(self, line: str) -> None:
        """Take the present step and its number of packages from a line."""
        for start, step in STEPS:
            if line.startswith(start):
                self._step, self._total, self._done = step, 0, 0
        if line.startswith(("Get:", "Unpacking ", "Setting up ")):
            # apt downloads all packages of a step before it unpacks the first.
            if line.startswith("Unpacking ") and self._step.startswith("downloading"):
                self._step, self._done = "installing the packages", 0
            self._done += 1
        elif match := re.search(r"(\d+) newly installed", line):
            self._total, self._done = int(match[1]), 0
        elif match := re.fullmatch(r"qsysd: packages (\d+)", line):
            self.packages = int(match[1])

    def _count(self) -> str:
        """Return how many packages of the step are done; "" for a step without packages."""
        if not self._total or not self._done:
            return ""
        # A package is installed in two steps: unpacked, then set up.
        done = self._done if self._step.startswith("downloading") else self._done // 2
        return f", {min(done, self._total)} of {self._total}"

    def reason(self) -> str:
        """Return the message that explains a failure: the first error among the last lines."""
        errors = [line for line in self._lines if ERRORS.match(line)]
        return errors[0] if errors else spawn.last_words("\n".join(self._lines))

    def tail(self) -> str:
        """Return the last lines of the output."""
        return "last lines of the output:\n" + "\n".join(list(self._lines)[-8:])

"""Progress of a command on standard error: lines, and one line for a wait that continues."""

from __future__ import annotations

import os
import sys
import time

import click

from qsysd.host import progress

FIRST = 2.0  # seconds of waiting until the first line where no terminal shows it in place
REPEAT = 10.0


class Progress(progress.Progress):
    """Progress of one command. A terminal shows a wait in one line that is rewritten in place."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._is_shown = False
        self._what = ""
        self._printed = 0.0

    def __call__(self, line: str) -> None:
        """Print a line of progress or a warning."""
        self._clear()
        click.echo(line, err=True)

    def waiting(self, what: str, seconds: float = 0.0, state: str = "", detail: str = "") -> None:
        """Show what a wait is for, its duration, and its state, or on a terminal a detail; "" ends it."""
        if not what:
            self._clear()
            self._what = ""
        elif self._in_place:
            self._rewrite(f"{what} ({seconds:.0f} s)", detail or state)
        else:
            self._repeat(f"{what}: {state}" if state else what, seconds)

    def _repeat(self, what: str, seconds: float) -> None:
        if seconds >= FIRST and (what != self._what or time.monotonic() - self._printed >= REPEAT):
            click.echo(f"{what} ({seconds:.0f} s)", err=True)
            self._what, self._printed = what, time.monotonic()

    def _rewrite(self, line: str, detail: str) -> None:
        try:
            # 0: the size is not known, as on a serial line or in a container
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        except OSError:
            columns = 80
        # Characters of double width would make the line wrap, and then it is not rewritten.
        line += f": {detail}" if detail else ""
        text = line.replace("\t", " ").encode("ascii", "replace").decode("ascii")
        click.echo(f"\r\x1b[K{text[: columns - 1]}", nl=False, err=True)
        self._is_shown = True

    def _clear(self) -> None:
        if self._is_shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._is_shown = False

"""Programs that take long, and those on the caller's terminal; short ones are started by `runtime.spawn`."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence

from qsysd.runtime.spawn import environment, log_command, require, search_path


def stream(
    argv: Sequence[str], *, extra_environment: Mapping[str, str] | None = None, keep: Sequence[int] = ()
) -> subprocess.Popen[str]:
    """Start a program and return it with its output and errors merged in `stdout`, line by line.

    For what takes long and reports its own progress. The caller waits for it and, when it gives up,
    ends it: the program runs in a session of its own, so that `os.killpg` reaches its children.
    keep: descriptors that it inherits. Raises HostError when it is not installed.
    """
    command = [require(argv[0]), *argv[1:]]
    log_command(command)
    return subprocess.Popen(
        command,
        pass_fds=keep,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        env=environment(extra_environment),
    )


class Follower:
    """A program that takes long, line by line; used in a `with` block.

    Iterating gives each line that it prints, without its end, as soon as it comes (carriage returns
    end lines too), and None for each second of silence, so that the caller can say that time goes by.
    On leaving the block, however that happens, the program and what it started in its session are
    gone, and `returncode` is set. When this process is killed, the kernel kills the program.
    """

    def __init__(
        self,
        argv: Sequence[str],
        extra_environment: Mapping[str, str] | None = None,
        *,
        keep: Sequence[int] = (),
    ) -> None:
        # setpriv(1) is of util-linux, which every Debian host has; it becomes the program.
        command = ["setpriv", "--pdeathsig", "KILL", "--", require(argv[0]), *argv[1:]]
        self._child = stream(command, extra_environment=extra_environment, keep=keep)
        self.returncode: int | None = None
        self._ended = False

    def __enter__(self) -> Follower:

        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        """Hand on what the program prints, and None when nobody can print any more."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line.rstrip())
        self._lines.put(None)

    def __iter__(self) -> Iterator[str | None]:
        while True:
            try:
                line = self._lines.get(timeout=1)
            except queue.Empty:
                yield None
                continue
            if line is None:
                self._ended = True
                return
            yield line

    def arrived(self) -> list[str]:
        """Return the lines that have arrived since the last call, without waiting."""
        lines = []
        while not self._ended:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                break
            self._ended = line is None
            if line is not None:
                lines.append(line)
        return lines

    def __exit__(self, *_error: object) -> None:
        if not self._ended:
            # Not waited for yet, so the number is still this program's.
            os.killpg(self._child.pid, signal.SIGKILL)
        self.returncode = self._child.wait()
        # Its end is the end of all that held the output: what they wrote into is nobody's now.
        self._reader.join(timeout=10)


def foreground(argv: Sequence[str]) -> int:
    """Run a program on the caller's own terminal (an editor, ssh, a pager); return its exit status."""
    command = [require(argv[0]), *argv[1:]]
    log_command(command)
    return subprocess.run(command, check=False, env={**os.environ, "PATH": search_path()}).returncode

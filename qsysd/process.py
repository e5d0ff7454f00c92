"""Programs that take long, and those on the caller's terminal; `runtime.spawn` runs short ones."""

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

    For a program that takes long and reports its progress. The caller waits for it or ends it: it runs in
    a separate session, so that `os.killpg` reaches its children. keep: descriptors that it inherits.
    Raise HostError if it is not installed.
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

    Iteration yields each line of its output, without its end, as soon as it arrives (carriage returns
    end lines too), and None after each second without output, so that the caller can report progress.
    At the end of the block the program and its session are ended, also after an error, and `returncode`
    is set. If this process is killed, the kernel kills the program.
    """

    def __init__(
        self,
        argv: Sequence[str],
        extra_environment: Mapping[str, str] | None = None,
        *,
        keep: Sequence[int] = (),
    ) -> None:
        # setpriv(1), of the essential package util-linux, becomes the program.
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
        """Queue the lines of output, and None at its end."""
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
            # Not waited for yet, so the process ID is still this program's.
            os.killpg(self._child.pid, signal.SIGKILL)
        self.returncode = self._child.wait()
        # All processes that had the pipe open have ended, so the reader reaches its end.
        self._reader.join(timeout=10)


def foreground(argv: Sequence[str]) -> int:
    """Run a program on the caller's own terminal (an editor, ssh, a pager); return its exit status."""
    command = [require(argv[0]), *argv[1:]]
    log_command(command)
    return subprocess.run(command, check=False, env={**os.environ, "PATH": search_path()}).returncode

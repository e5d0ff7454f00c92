"""Run other programs: the only user of `subprocess`.

Each program gets an argument list (never a shell string), a closed standard input, LANG=C.UTF-8 so
that its messages can be matched, and, where it can hang, a deadline. With debugging on, each
command is logged to standard error in a form that can be copied into a shell.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from qsysd.errors import HostError, QsysdError, TimeoutExpired

# Which Debian package brings a program: the answer to "what now?" when it is not there.
PACKAGES = {
    "dhcp_release": "dnsmasq-utils",
    "dnsmasq": "dnsmasq-base",
    "genisoimage": "genisoimage",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}

# A user's PATH may lack the administrator's directories, where ip, nft and dnsmasq live.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandError(QsysdError):
    """A program ended with a status other than zero; `returncode` and `stderr` hold what it left."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        self.argv = list(argv)
        self.returncode = returncode
        self.stderr = stderr
        super().__init__(f"{argv[0]} failed: {last_words(stderr) or f'exit status {returncode}'}")


def last_words(stderr: str) -> str:
    """Return the last line of a program's standard error that says something."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def search_path() -> str:
    """Return PATH with the administrator's directories behind the caller's own."""
    return ":".join(part for part in (os.environ.get("PATH", ""), SYSTEM_PATH) if part)


def find(program: str) -> str | None:
    """Return the absolute path of `program`, or None where the host lacks it."""
    return shutil.which(program, path=search_path())


def require(program: str) -> str:
    """Return the absolute path of `program`.

    Raises HostError, with the Debian package to install, where the host lacks it.
    """
    path = find(program)
    if path is None:
        package = PACKAGES.get(program, program)
        raise HostError(f"{program} is not installed", hint=f"apt install {package}")
    return path


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment that programs run in: the caller's, in C.UTF-8."""
    return {**os.environ, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PATH": search_path(), **(extra or {})}


def log_command(argv: Sequence[str]) -> None:
    """Show a command on standard error when QSYSD_DEBUG is set."""
    if os.environ.get("QSYSD_DEBUG"):
        print("+ " + shlex.join(argv), file=sys.stderr, flush=True)


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float | None = None,
    check: bool = True,
    extra_environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its exit status and output as text.

    `stdin` is fed to it (nothing by default), `timeout` is in seconds.
    Raises CommandError when it ends with another status than zero and `check` is set,
    TimeoutExpired when it takes too long (it is killed then), HostError when it is not installed.
    """
    command = [require(argv[0]), *argv[1:]]
    log_command(command)
    try:
        done = subprocess.run(
            command,
            # subprocess refuses `stdin` together with `input`
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
            env=environment(extra_environment),
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutExpired(f"{argv[0]} did not end within {timeout:g} s") from error
    if check and done.returncode != 0:
        raise CommandError(argv, done.returncode, done.stderr)
    return done


def stream(
    argv: Sequence[str], *, extra_environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a program and return it with its output and errors merged in `stdout`, line by line.

    For what takes long and reports its own progress. The caller waits for it and, when it gives up,
    ends it: the program runs in a session of its own, so that `os.killpg` reaches its children.
    Raises HostError when it is not installed.
    """
    command = [require(argv[0]), *argv[1:]]
    log_command(command)
    return subprocess.Popen(
        command,
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

    def __init__(self, argv: Sequence[str], extra_environment: Mapping[str, str] | None = None) -> None:
        # setpriv(1) is of util-linux, which every Debian host has; it becomes the program.
        command = ["setpriv", "--pdeathsig", "KILL", "--", require(argv[0]), *argv[1:]]
        self._child = stream(command, extra_environment=extra_environment)
        self.returncode: int | None = None
        self._ended = False

    def __enter__(self) -> Follower:
        # Imported here: the helper that runs at each start and stop of a VM follows nothing.
        import queue
        import threading

        self._silence = queue.Empty
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
            except self._silence:
                yield None
                continue
            if line is None:
                self._ended = True
                return
            yield line

    def __exit__(self, *_error: object) -> None:
        import signal

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

"""Run other programs to their end; `process` runs those that take long or need the terminal.

Each program gets an argument list (never a shell string), an empty standard input, LANG=C.UTF-8 so
that its messages can be matched, and, where it can hang, a deadline. With QSYSD_DEBUG set, each
command is logged to standard error in a form that can be copied into a shell.
"""

from __future__ import annotations

import os
import select
import sys

from qsysd.errors import HostError, QsysdError, TimeoutExpired
from qsysd.runtime import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The Debian package of a program, for the hint when it is not installed.
PACKAGES = {
    "bridge": "iproute2",
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

# A user's PATH may lack the administrator's directories, which contain ip, nft and dnsmasq.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_IGNORED_BY_PYTHON = (13, 25)  # SIGPIPE, SIGXFSZ


class CommandError(QsysdError):
    """A program exited with a status other than zero: `returncode`, with `stderr` as its error output."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        self.argv = list(argv)
        self.returncode = returncode
        self.stderr = stderr
        super().__init__(f"{argv[0]} failed: {last_words(stderr) or f'exit status {returncode}'}")


def last_words(stderr: str) -> str:
    """Return the last line of a program's standard error that is not empty."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def search_path() -> str:
    """Return PATH followed by the administrator's directories."""
    return ":".join(part for part in (os.environ.get("PATH", ""), SYSTEM_PATH) if part)


def find(program: str) -> str | None:
    """Return the absolute path of `program`, or None where the host lacks it."""
    if os.path.isabs(program):
        return program if os.access(program, os.X_OK) else None
    for directory in search_path().split(":"):
        path = os.path.join(directory, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def require(program: str) -> str:
    """Return the absolute path of `program`.

    Raise HostError, with the Debian package to install, where the host lacks it.
    """
    path = find(program)
    if path is None:
        package = PACKAGES.get(program, program)
        raise HostError(f"{program} is not installed", hint=f"apt install {package}")
    return path


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of programs: the caller's, with the locale C.UTF-8."""
    return {**os.environ, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PATH": search_path(), **(extra or {})}


def log_command(argv: Sequence[str]) -> None:
    """Print a command to standard error if QSYSD_DEBUG is set."""
    if os.environ.get("QSYSD_DEBUG"):
        import shlex

        print("+ " + shlex.join(argv), file=sys.stderr, flush=True)


class Done:
    """A program that has exited: its status (negative: the signal that ended it) and its output."""

    __slots__ = ("argv", "returncode", "stderr", "stdout")

    def __init__(self, argv: Sequence[str], returncode: int, stdout: str, stderr: str) -> None:
        self.argv = argv
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class Running:
    """A program that was started; `finish` waits for it. Two that wait for the kernel can wait together.

    Input and output are files in memory, so that no pipe can fill up. stdin: its input, empty by
    default. Raise HostError if it is not installed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        extra_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = argv
        command = [require(argv[0]), *argv[1:]]
        log_command(command)
        files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
        try:
            os.pwrite(files[0], (stdin or "").encode(), 0)
            self._pid = os.posix_spawn(
                command[0],
                command,
                environment(extra_environment),
                file_actions=[(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)],
                # Python ignores these signals; a program must not.
                setsigdef=_IGNORED_BY_PYTHON,
            )
        except BaseException:
            for file in files:
                os.close(file)
            raise
        os.close(files[0])
        self._outputs = files[1:]

    def finish(self, *, timeout: float | None = None, check: bool = True) -> Done:
        """Wait until the program exits, and return its status and output. timeout: seconds.

        Raise CommandError if `check` is set and its status is not zero, TimeoutExpired if it takes too
        long and was killed.
        """
        try:
            self._wait(timeout)
            _, status = os.waitpid(self._pid, 0)
        except BaseException:
            # Not waited for yet, so the process ID is still this program's.
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
            self._close()
            raise
        returncode = os.waitstatus_to_exitcode(status)
        stdout, stderr = (_text(file) for file in self._outputs)
        self._close()
        if check and returncode != 0:
            raise CommandError(self.argv, returncode, stderr)
        return Done(self.argv, returncode, stdout, stderr)

    def _wait(self, timeout: float | None) -> None:
        descriptor = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise TimeoutExpired(f"{self.argv[0]} did not end within {timeout:g} s")
        finally:
            os.close(descriptor)

    def _close(self) -> None:
        for file in self._outputs:
            os.close(file)


def _text(file: int) -> str:
    """Return what a program wrote into a file in memory; bytes that are not UTF-8 are replaced."""
    parts = []
    position = 0
    while part := os.pread(file, 1024 * 1024, position):
        parts.append(part)
        position += len(part)
    return b"".join(parts).decode("utf-8", "replace").replace("\r\n", "\n")


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float | None = None,
    check: bool = True,
    extra_environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a program to its end; parameters and errors as for `Running` and `finish`."""
    return Running(argv, stdin=stdin, extra_environment=extra_environment).finish(
        timeout=timeout, check=check
    )

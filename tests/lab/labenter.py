"""Access to a running host: commands, terminals, files."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import labcgroup
from labproc import LabError, clean_environment

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LOGNAME": "root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SHELL": "/bin/bash",
    "USER": "root",
}

# Options of nsenter, and the files in /proc/PID/ns; the PID namespace is entered before them.
NAMESPACES = (("mount", "mnt"), ("uts", "uts"), ("ipc", "ipc"), ("net", "net"), ("cgroup", "cgroup"))


def entry(leader: int, argv: Sequence[str]) -> list[str]:
    """Return the command on the machine that runs `argv` as root on the host with the PID 1 `leader`."""
    group = labcgroup.of_process(leader) / "cgroup.procs"
    namespaces = [f"--{option}=/proc/{leader}/ns/{file}" for option, file in NAMESPACES]
    environment = {**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}
    return [
        *("nsenter", f"--pid=/proc/{leader}/ns/pid", "--"),
        # The process must be in the host's PID namespace when it joins the cgroup: otherwise it would be
        # listed there as process 0, which systemd does not support.
        *("/bin/sh", "-c", 'echo 0 >"$1" && shift && exec "$@"', "sh", str(group)),
        *("nsenter", *namespaces, "--"),
        # When the first nsenter, which waits outside of the namespaces, is killed, the command must exit.
        *("setpriv", "--pdeathsig", "KILL"),
        *("env", "-i", "-C", "/root", *(f"{name}={value}" for name, value in environment.items())),
        *argv,
    ]


def with_terminal(argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` on a new terminal, which is connected to the caller's.

    A terminal of the machine has no device node on the host, so programs there do not recognise it.
    """
    return ["script", "--quiet", "--return", "--command", shlex.join(argv), "/dev/null"]


def put(leader: int, source: Path, target: str) -> None:
    """Copy a file or directory of the machine to `target` on a host; keep modes, set the owner to root."""
    pack = ["tar", "-C", str(source.parent), "--owner=0", "--group=0", "-cf", "-", source.name]
    folder, name = os.path.split(target)
    unpack = ["tar", "-C", folder or "/root", renaming(source.name, name), "-xf", "-"]
    pipe(pack, entry(leader, unpack))


def get(leader: int, source: str, target: Path) -> None:
    """Copy a file or directory of a host to the path `target` on the machine, with its modes."""
    folder, name = os.path.split(source)
    pack = ["tar", "-C", folder or "/root", "-cf", "-", name]
    unpack = ["tar", "-C", str(target.parent), "--no-same-owner", renaming(name, target.name), "-xf", "-"]
    pipe(entry(leader, pack), unpack)


def renaming(old: str, new: str) -> str:
    """Return the option of tar that renames the first component of each path, but not of link targets."""
    meant = new.replace("\\", "\\\\").replace("&", "\\&").replace("|", "\\|")
    return f"--transform=flags=rSH;s|^{re.escape(old)}|{meant}|"


def pipe(source: Sequence[str], sink: Sequence[str]) -> None:
    """Connect two commands by a pipe; raise LabError with their messages if one fails."""
    environment = clean_environment()
    with subprocess.Popen(
        source, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as first:
        second = subprocess.run(sink, stdin=first.stdout, capture_output=True, env=environment, check=False)
        if first.stdout:
            # If the second command exited early, the first must get SIGPIPE.
            first.stdout.close()
        words = first.stderr.read() if first.stderr else b""
    if first.returncode != 0 or second.returncode != 0:
        raise LabError((words + second.stderr).decode(errors="replace").strip() or f"{source[0]} failed")

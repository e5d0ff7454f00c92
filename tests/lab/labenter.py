"""Ways into a running host: commands, terminals, files."""

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
    """Return the command on the machine that runs `argv` as root in the host whose PID 1 is `leader`."""
    group = labcgroup.of_process(leader) / "cgroup.procs"
    namespaces = [f"--{option}=/proc/{leader}/ns/{file}" for option, file in NAMESPACES]
    environment = {**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}
    return [
        *("nsenter", f"--pid=/proc/{leader}/ns/pid", "--"),
        # The process joins the group of the host's PID 1 only as one that the host can see: a foreign
        # one would be listed there as process 0, which systemd cannot make sense of.
        *("/bin/sh", "-c", 'echo 0 >"$1" && shift && exec "$@"', "sh", str(group)),
        *("nsenter", *namespaces, "--"),
        # The first nsenter waits outside: when it is killed, what it waits for must not go on alone.
        *("setpriv", "--pdeathsig", "KILL"),
        *("env", "-i", "-C", "/root", *(f"{name}={value}" for name, value in environment.items())),
        *argv,
    ]


def with_terminal(argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` on a new terminal, in raw step with the one it is run from.

    A terminal of the machine's has no name in a host, and programs there would take it for none.
    """
    return ["script", "--quiet", "--return", "--command", shlex.join(argv), "/dev/null"]


def put(leader: int, source: Path, target: str) -> None:
    """Copy a file or folder of the machine to the path `target` in a host, modes kept, owned by root."""
    pack = ["tar", "-C", str(source.parent), "--owner=0", "--group=0", "-cf", "-", source.name]
    folder, name = os.path.split(target)
    unpack = ["tar", "-C", folder or "/root", renaming(source.name, name), "-xf", "-"]
    pipe(pack, entry(leader, unpack))


def get(leader: int, source: str, target: Path) -> None:
    """Copy a file or folder of a host to the path `target` on the machine, modes kept."""
    folder, name = os.path.split(source)
    pack = ["tar", "-C", folder or "/root", "-cf", "-", name]
    unpack = ["tar", "-C", str(target.parent), "--no-same-owner", renaming(name, target.name), "-xf", "-"]
    pipe(entry(leader, pack), unpack)


def renaming(old: str, new: str) -> str:
    """Return tar's option that gives the first part of every path another name, and leaves links alone."""
    meant = new.replace("\\", "\\\\").replace("&", "\\&").replace("|", "\\|")
    return f"--transform=flags=rSH;s|^{re.escape(old)}|{meant}|"


def pipe(source: Sequence[str], sink: Sequence[str]) -> None:
    """Run one command into another; raise LabError with their words if either fails."""
    environment = clean_environment()
    with subprocess.Popen(
        source, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as first:
        second = subprocess.run(sink, stdin=first.stdout, capture_output=True, env=environment, check=False)
        if first.stdout:
            # Where the second one ended early, the first must not wait for ever for a reader.
            first.stdout.close()
        words = first.stderr.read() if first.stderr else b""
    if first.returncode != 0 or second.returncode != 0:
        raise LabError((words + second.stderr).decode(errors="replace").strip() or f"{source[0]} failed")

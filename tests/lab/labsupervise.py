"""The supervisor of a host: the process that boots it, again whenever it reboots.

It runs in a private mount namespace, in which it mounts the host's overlay. When it exits for any reason,
the kernel removes the mounts; nothing has to be unmounted on the machine.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
from pathlib import Path

from labcgroup import Cgroup, hierarchy
from labnet import BRIDGE
from labproc import Process, clean_environment, run, write_whole

# Exit status of systemd-nspawn with --keep-unit when the container reboots.
REBOOT = 133

CGROUPS = Path("/sys/fs/cgroup")


def supervise(*, name: str, directory: Path, root: Path | None, cgroup: Cgroup) -> int:
    """Run the host `name` until it shuts down; return the exit status of the supervisor.

    root: the cached root below the host's overlay in `directory`, None if the host has a copy of it.
    """
    own = Process.of(os.getpid())
    assert own is not None
    if not cgroup.scope:
        cgroup.enter()
    # nspawn creates locks and sockets in /run, which must not remain on the machine.
    run(["mount", "-t", "tmpfs", "-o", "mode=0755", "lab-run", "/run"])
    if hierarchy() != CGROUPS:
        # The machine may also have cgroup1 hierarchies; the host must see cgroup2 only.
        run(["mount", "-t", "cgroup2", "lab-cgroup", str(CGROUPS)])
    if root:
        hold(root)
        run(overlay_argv(name, directory, root))
    write_whole(directory / "supervisor.json", json.dumps(dataclasses.asdict(own)))
    while True:
        # The interface of the previous boot is removed with a delay, and its name is needed again.
        run(["ip", "link", "delete", f"vb-{name}"], check=False)
        argv = nspawn_argv(name, directory / "root")
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, env=clean_environment(), check=False)
        print(f"lab: {name} exited with status {done.returncode}", flush=True)
        if done.returncode != REBOOT:
            return 0


def hold(root: Path) -> None:
    """Hold a shared lock on a cached root until this process exits, so that it is not removed."""
    fcntl.flock(os.open(root, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH)


def overlay_argv(name: str, directory: Path, root: Path) -> list[str]:
    """Return the command that mounts a host's overlay on a cached root."""
    options = (
        f"lowerdir={root}",
        f"upperdir={directory}/upper",
        f"workdir={directory}/work",
        # Directories of the lower layer can be renamed, as on other file systems.
        "redirect_dir=on",
    )
    return ["mount", "-t", "overlay", "-o", ",".join(options), f"lab-{name}", f"{directory}/root"]


def nspawn_argv(name: str, root: Path) -> list[str]:
    """Return the command that boots a host once."""
    return [
        "systemd-nspawn",
        "--quiet",
        f"--directory={root}",
        f"--machine={name}",
        "--register=no",
        "--keep-unit",
        f"--network-bridge={BRIDGE}",
        "--capability=all",
        # qsysd-taps.service needs it; nspawn's default filter denies it
        "--system-call-filter=pidfd_getfd",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--console=pipe",
        "--boot",
    ]

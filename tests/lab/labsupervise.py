"""The supervisor of a host: the process that boots it, again and again for as long as it reboots.

It has a mount namespace of its own, in which it lays the host's layer over the cached root. Whatever
ends it, the mounts end with it, and nothing has to be unmounted on the machine.
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

# What systemd-nspawn with --keep-unit ends with when the container asks to be booted again.
REBOOT = 133

CGROUPS = Path("/sys/fs/cgroup")


def supervise(*, name: str, directory: Path, root: Path | None, cgroup: Cgroup) -> int:
    """Run the host `name` until it is switched off; return the supervisor's exit status.

    `root` is the cached root that the host's layer in `directory` lies above, None if the host has a
    copy of its own.
    """
    own = Process.of(os.getpid())
    assert own is not None
    if not cgroup.scope:
        cgroup.enter()
    # nspawn keeps locks and sockets under /run: none of them shall be found on the machine later.
    run(["mount", "-t", "tmpfs", "-o", "mode=0755", "lab-run", "/run"])
    if hierarchy() != CGROUPS:
        # A machine may have the cgroup1 hierarchies as well: the host gets to see cgroup2 only.
        run(["mount", "-t", "cgroup2", "lab-cgroup", str(CGROUPS)])
    if root:
        hold(root)
        run(overlay_argv(name, directory, root))
    write_whole(directory / "supervisor.json", json.dumps(dataclasses.asdict(own)))
    while True:
        # The last boot's interface goes some time after its namespace, and its name is wanted again.
        run(["ip", "link", "delete", f"vb-{name}"], check=False)
        argv = nspawn_argv(name, directory / "root")
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, env=clean_environment(), check=False)
        print(f"lab: {name} ended with {done.returncode}", flush=True)
        if done.returncode != REBOOT:
            return 0


def hold(root: Path) -> None:
    """Lock a cached root, as others may too, while this process lives: it is not to be removed."""
    fcntl.flock(os.open(root, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH)


def overlay_argv(name: str, directory: Path, root: Path) -> list[str]:
    """Return the command that lays a host's layer over a cached root."""
    options = (
        f"lowerdir={root}",
        f"upperdir={directory}/upper",
        f"workdir={directory}/work",
        # A directory of the root can then be renamed, as on a plain file system.
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
        # not in nspawn's own list, as it is for debuggers; qsysd-taps.service needs it
        "--system-call-filter=pidfd_getfd",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--console=pipe",
        "--boot",
    ]

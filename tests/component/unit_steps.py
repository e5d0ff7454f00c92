"""What the tests of the units' steps share: a process in QEMU's place, and files that QEMU may leave."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path

from qmp_peer import Peer, Script

from qsysd.paths import Scope

VM = "web1"
# root tries with somebody else's uid, everybody else with their own
UID, GID = (12345, 54321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
FOREVER = 3600.0


class StandIn:
    """A process in QEMU's place, and its monitors: what they answer is the test's, when it ends too."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.process = subprocess.Popen(["sleep", "1000"])
        self.stack = contextlib.ExitStack()
        self.peers: dict[str, Peer] = {}

    def end(self) -> dict[str, object]:
        """End as QEMU does when the guest is off; for use as an answer."""
        self.process.kill()
        self.process.wait()
        return {}

    def monitor(self, script: Script, *purposes: str) -> Peer:
        """Serve monitors by a script; return the last one."""
        for purpose in purposes:
            peer = Peer(self.scope.monitor(VM, purpose), script)
            self.peers[purpose] = self.stack.enter_context(peer)
        return self.peers[purposes[-1]]

    def obedient(self, **answers: object) -> dict[str, object]:
        """Return the answers of a guest that powers off when it is asked to."""
        return {
            "query-status": {"status": "running"},
            "system_powerdown": self.end,
            "quit": self.end,
            **answers,
        }

    def commands(self) -> list[str]:
        """Return what all monitors were told, the negotiation aside."""
        return [
            name
            for peer in self.peers.values()
            for name in peer.commands
            if name not in ("qmp_capabilities", "query-status")
        ]

    def is_running(self) -> bool:
        """Return whether the process has not ended."""
        return self.process.poll() is None


def plant_symlink(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def plant_dangling(path: Path, victim: Path) -> None:
    path.symlink_to("nowhere")


def plant_hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def plant_fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def plant_socket(path: Path, victim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def plant_directory(path: Path, victim: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


def plant_link_to_directory(path: Path, victim: Path) -> None:
    path.symlink_to(victim.parent)


def owners(path: Path) -> set[tuple[int, int]]:
    """Return the owners of a directory and all in it."""
    return {(entry.lstat().st_uid, entry.lstat().st_gid) for entry in [path, *path.iterdir()]}

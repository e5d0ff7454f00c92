"""What tests of the command line share: a host below a directory, and ways to run a command."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import Result
from samples import vm

from qsysd.cli import main
from qsysd.cli.main import VERBS, command
from qsysd.config import dump
from qsysd.host import listing
from qsysd.host.context import Host
from qsysd.host.outcomes import State

DEFINITIONS = {name: dump.dump_vm(vm(name=name, seed=False)) for name in ("web1", "web2")}


class OwnHost(Host):
    """A host below a directory; every user counts as root."""

    def require_root(self) -> None:
        """Accept every user."""


Run = Callable[..., Result]


DONE = {
    "start": State.STARTED, "stop": State.STOPPED, "kill": State.KILLED, "restart": State.RESTARTED,
    "reset": State.RESET, "pause": State.PAUSED, "resume": State.RESUMED, "enable": State.ENABLED,
    "disable": State.DISABLED,
}  # fmt: skip


def all_commands() -> list[tuple[str, click.Command]]:
    """Return every verb with its words, those in groups included."""
    found: list[tuple[str, click.Command]] = []
    assert isinstance(command, click.Group)
    context = click.Context(command)
    for verb in VERBS:
        each = command.get_command(context, verb)
        assert each
        if isinstance(each, click.Group):
            found += [(f"{verb} {name}", sub) for name, sub in each.commands.items()]
        found.append((verb, each))
    return found


COMMANDS = dict(all_commands())


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """Run a command line to its exit status, as main() does; return it with what went to standard error."""
    monkeypatch.setattr(sys, "argv", ["qsysd", *words])
    error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    return main.run(), error.getvalue()


def listed(**changes: Any) -> listing.ListedVM:
    values = {
        "name": "web1", "unit": "qemu-vm@web1.service", "active": "active", "sub": "running",
        "guest": "running",
        "enabled": True, "pid": 4711, "ip": "10.83.0.10", "image": "debian", "memory_mib": 512, "cpus": 2,
    }  # fmt: skip
    return listing.ListedVM(**{**values, **changes})

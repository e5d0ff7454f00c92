"""VMs of the tests of operations, and what their commands did."""

from __future__ import annotations

import os

from own_host import OwnHost

from qsysd import paths
from qsysd.errors import QsysdError
from qsysd.host.outcomes import Outcome
from qsysd.model.vm import VMSpec
from qsysd.operations import create

UNIT = paths.unit("web1")
IMAGE_VM = "name: {}\nimage: tiny\ndisks: [{{size: 1M}}]\n"


def jobs(host: OwnHost) -> list[str]:
    """Return the jobs that were enqueued, and signals and reloads, in their order."""
    methods = ("StartUnit", "StopUnit", "RestartUnit", "KillUnit", "Reload")
    return [
        call.replace(".service", "").replace("qemu-vm@", "")
        for call in host.fake.calls
        if call.startswith(methods)
    ]


def one(outcomes: list[Outcome]) -> str | QsysdError:
    """Return the state of the only outcome, or its error."""
    (outcome,) = outcomes
    return outcome.error or outcome.state


def make(host: OwnHost, name: str = "web1", more: str = "", **options: bool) -> VMSpec:
    """Create a VM from the image `tiny`; return its spec. more: lines of its definition."""
    create.create(host, IMAGE_VM.format(name) + more, "x.yaml", **options)  # type: ignore[arg-type]
    return host.store.load(name)


def files() -> set[str]:
    """Return all files and directories of the host but locks and caches."""
    found = set()
    for directory, directories, names in os.walk("."):
        found |= {os.path.join(directory, name) for name in [*directories, *names]}
    return {path for path in found if not path.startswith(("./run/qsysd", "./stand-ins", "./systemd.json"))}

"""Fixtures of the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_host import DEFINITIONS, DONE, OwnHost
from click.testing import CliRunner, Result
from samples import vm

from qsysd import paths, render
from qsysd.cli.main import command
from qsysd.host import selection
from qsysd.host.context import Host
from qsysd.host.outcomes import Outcome, State
from qsysd.operations import power
from qsysd.paths import Scope


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Let commands work on a host below a directory, with the VMs web1 and web2."""
    scope = Scope(str(tmp_path))
    monkeypatch.setattr("qsysd.requests.client.Host", partial(OwnHost, scope))
    monkeypatch.setattr("qsysd.paths.Scope", lambda: scope)
    made = OwnHost(scope)
    for path in (scope.definitions_dir, scope.networks_dir, scope.unit_dir, scope.images_dir, scope.vms_dir):
        Path(path).mkdir(parents=True)
    Path(scope.unit_dir, paths.UNIT_TEMPLATE).touch()
    for name in ("web1", "web2"):
        Path(scope.definition(name)).write_text(DEFINITIONS[name], encoding="utf-8")
    return made


@pytest.fixture
def rendered(host: OwnHost) -> OwnHost:
    """Write what follows from the definitions."""
    for name in host.store.names():
        host.store.write_rendered(name, render.vm(vm(name=name, seed=False), host.scope))
    return host


@pytest.fixture
def qsysd_command(host: OwnHost) -> Callable[..., Result]:
    """Run a command line without a terminal and return what it printed, and its status."""

    def run(*words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(command, words, input=stdin, prog_name="qsysd", standalone_mode=True)

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """Return what the operations of `power` were called with; each succeeds for each VM."""
    made: list[tuple[str, Any]] = []

    def operation(name: str, state: State) -> Callable[[Host, Sequence[str]], list[Outcome]]:
        def call(host: Host, names: Sequence[str] | None) -> list[Outcome]:
            vms = selection.resolve(host, names)
            made.append((name, vms))
            return [Outcome(vm, state) for vm in vms]

        return call

    for name, state in DONE.items():
        monkeypatch.setattr(power, name, operation(name, state))
    yield made

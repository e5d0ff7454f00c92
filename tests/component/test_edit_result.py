"""What `edit`, `render` and `recover` return."""

from __future__ import annotations

from pathlib import Path

from own_host import OwnHost

from qsysd import paths
from qsysd.errors import InvalidError
from qsysd.host import intents
from qsysd.operations import create, edit, recover

VM = "name: {}\nimage: tiny\nseed: false\n"


def make(host: OwnHost, *names: str) -> None:
    for name in names:
        create.create(host, VM.format(name), start=False, enable=False)


def test_an_edit_of_a_running_vm_takes_effect_at_its_restart(host: OwnHost) -> None:
    make(host, "web1")
    before = host.store.require("web1")
    assert edit.edit(host, "web1", before, before=before) == edit.Edited("web1", restart=False)
    host.fake.set(paths.unit("web1"), "active", "running")
    before = host.store.require("web1")
    assert edit.edit(host, "web1", before, before=before).restart


def test_all_definitions_are_rendered_and_all_errors_are_returned(host: OwnHost) -> None:
    make(host, "web1", "web2", "web3", "web4")
    for name in ("web1", "web3"):
        Path(host.scope.definition(name)).write_text("name: [", encoding="utf-8")
    Path(host.scope.environment("web4")).unlink()
    for check in (True, False):
        done = edit.render(host, None, check=check)
        assert list(done.failed) == ["web1", "web3"]
        assert all(isinstance(error, InvalidError) for error in done.failed.values())
        assert done.differences == {"web2": [], "web4": [host.scope.environment("web4")]}
    assert Path(host.scope.environment("web4")).exists()


def test_recover_returns_what_it_found(host: OwnHost) -> None:
    make(host, "web1")
    intents.begin(host, "web1", "create")
    assert recover.recover(host) == [recover.Recovered("web1", "create", None)]
    assert (recover.recover(host), host.store.names()) == ([], [])

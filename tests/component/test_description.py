"""The status of a VM is the same whether its definition was parsed or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from own_host import OwnHost

from qsysd.operations import create, edit, query
from qsysd.store import description

LONG = "a-name-that-is-too-long-for"
NAMED = "nics: [{network: default}, {network: default, name: lan}]\n"
UNREADABLE_TAP = "nics: [{network: default, name: management}]\n"


def make(host: OwnHost, name: str, more: str) -> None:
    """Create a VM that is off."""
    create.create(host, f"name: {name}\nimage: tiny\nseed: false\n{more}", "x", start=False, enable=False)


@pytest.mark.parametrize(
    ("name", "more", "is_described"),
    [
        ("web1", "", True),
        ("web1", "user: admin\naccel: tcg\n", True),
        ("web1", "user: 'no'\n", False),
        ("web1", "append: user=1\nkernel: /bin/sh\n", False),
        ("web1", NAMED, True),
        ("web1", "nics: []\n", True),
        ("web1", "machine: pc-q35_x\n", True),
        (LONG, "disks: [{}, {size: 1G}]\n", True),
        (LONG, UNREADABLE_TAP, False),
    ],
)
def test_status_is_the_same_with_and_without_the_definition_parsed(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch, name: str, more: str, is_described: bool
) -> None:
    make(host, name, more)
    assert (description.of_rendered(host.store, name) is not None) == is_described
    described = query.status(host, [name])
    monkeypatch.setattr(description, "of_rendered", lambda *_: None)
    assert described == query.status(host, [name])


def append(path: str, text: str) -> None:
    """Add a line to a file."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(text)


CHANGES: dict[str, Callable[[OwnHost], None]] = {
    "the definition": lambda host: append(host.scope.definition("web1"), "# a comment\n"),
    "the environment file": lambda host: append(host.scope.environment("web1"), "# a comment\n"),
    "the drop-in": lambda host: append(host.scope.drop_in("web1"), "# a comment\n"),
    "the defaults": lambda host: append(host.scope.defaults_file, "cpus: 2\n"),
    "no drop-in": lambda host: os.unlink(host.scope.drop_in("web1")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_may_differ_from_the_definition_are_rendered_again(host: OwnHost, change: str) -> None:
    make(host, "web1", "")
    assert description.of_rendered(host.store, "web1")
    CHANGES[change](host)
    assert description.of_rendered(host.store, "web1") is None


def test_status_shows_the_disks_of_a_vm_whose_environment_file_is_missing(host: OwnHost) -> None:
    make(host, "web1", NAMED)
    (before,) = query.status(host, ["web1"])
    os.unlink(host.scope.environment("web1"))
    (after,) = query.status(host, ["web1"])
    assert after.disks == before.disks
    assert len(after.disks) == 1


def test_a_user_that_is_empty_in_yaml_is_not_a_login(host: OwnHost) -> None:
    make(host, "web1", "")
    append(host.scope.definition("web1"), "user: null\n")
    edit.render(host, ["web1"])
    assert description.of_rendered(host.store, "web1") is None
    assert query.status(host, ["web1"])[0].user is None

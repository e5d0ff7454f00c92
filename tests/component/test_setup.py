"""Preparing a host: directories, units, networks and the host's SSH key."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from own_host import OwnHost

from qsysd.errors import HostError, QsysdError
from qsysd.host import journal, keys
from qsysd.operations import create, setup
from qsysd.operations.setup import Action, Step
from qsysd.paths import Scope


def test_set_up_is_safe_to_repeat(host: OwnHost) -> None:
    # the host was set up before
    assert setup.setup(host).steps == []
    assert "Reload" not in host.fake.calls
    assert not [call for call in host.fake.calls if "RestartUnit" in call]


def test_set_up_mends_what_is_missing(host: OwnHost) -> None:
    scope = host.scope
    os.unlink(os.path.join(scope.unit_dir, "qemu-vm@.service"))
    os.unlink(scope.network_rules("default"))
    shutil.rmtree(scope.dhcp_hosts_dir("default"))
    host.fake.set("qsysd-dhcp@default.service", "failed", "failed")
    done = setup.setup(host).steps
    assert Step(Action.INSTALLED_UNIT, "qemu-vm@.service") in done
    assert Step(Action.STARTED_UNIT, "qsysd-dhcp@default.service") in done
    assert host.fake.calls.count("Reload") == 1
    assert os.path.isdir(scope.dhcp_hosts_dir("default"))
    assert setup.setup(host).steps == []


def test_set_up_keeps_what_people_have_written(host: OwnHost) -> None:
    Path(host.scope.defaults_file).write_text("memory: 2G\n", encoding="utf-8")
    network = Path(host.scope.network_definition("default"))
    network.write_text("name: default\nsubnet: 10.77.0.0/24\n", encoding="utf-8")
    key = Path(host.scope.ssh_key).read_bytes()
    setup.setup(host)
    assert host.store.defaults().memory_mib == 2048
    assert host.store.load_network("default").subnet == "10.77.0.0/24"
    assert "QSYSD_GATEWAY=10.77.0.1/24" in Path(host.scope.network_environment("default")).read_text(
        encoding="utf-8"
    )
    assert Path(host.scope.ssh_key).read_bytes() == key


def test_what_others_may_not_see_is_closed_whatever_the_umask(scope: Scope) -> None:
    before = os.umask(0)
    try:
        os.makedirs(scope.unit_dir)
        setup.setup(OwnHost(scope))
    finally:
        os.umask(before)
    closed = (scope.definitions_dir, scope.vms_dir, scope.intents_dir, scope.known_hosts_dir)
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in closed} == {0o700}
    assert stat.S_IMODE(os.stat(scope.ssh_key).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(scope.ssh_key)).st_mode) & 0o077 == 0


def test_definitions_are_rendered_again_for_a_new_version(host: OwnHost) -> None:
    for name in ("web1", "web2"):
        create.create(host, f"name: {name}\nimage: tiny\ndisks: [{{}}]\n", "x", start=False)
        Path(host.scope.environment(name)).write_text("# of an older version\n", encoding="utf-8")
    host.fake.calls.clear()
    rendered = {Step(Action.RENDERED_VM, name) for name in ("web1", "web2")}
    assert rendered <= set(setup.setup(host).steps)
    # systemd reads all drop-ins at once: with 1000 VMs, a daemon-reload takes a second.
    assert len([call for call in host.fake.calls if call.startswith("refresh")]) == 1
    Path(host.scope.definition("web1")).write_text("name: [", encoding="utf-8")
    setup.setup(host)
    assert any(line.startswith("warning: ") and "web1.yaml" in line for line in host.told)


def test_a_network_that_does_not_come_up_is_told_in_its_own_words(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.fake.set("qsysd-network@default.service", "failed", "failed")
    host.fake.results["qsysd-network@default.service"] = "failed"
    monkeypatch.setattr(journal, "failure", lambda *_: "nft: syntax error")
    with pytest.raises(QsysdError, match=r"qsysd-network@default\.service did not start: nft: syntax error"):
        setup.setup(host)


def test_the_key_of_the_host_is_created_once(host: OwnHost) -> None:
    first = keys.host_key(host.scope)
    assert first.startswith("ssh-ed25519 ")
    assert keys.host_key(host.scope) == first


def test_a_new_key_is_synced_before_it_is_used(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    for path in (host.scope.ssh_key, f"{host.scope.ssh_key}.pub"):
        os.unlink(path)
    keys.host_key(host.scope)
    directory = os.path.dirname(os.path.abspath(host.scope.ssh_key))
    assert synced[-2:] == [f"{directory}/id_ed25519.part", directory]


@pytest.mark.parametrize("left", [[".part"], [".part", ".part.pub"], [".pub"]])
def test_a_killed_creation_of_the_key_is_repeated(host: OwnHost, left: list[str]) -> None:
    for path in (host.scope.ssh_key, f"{host.scope.ssh_key}.pub"):
        os.unlink(path)
    for suffix in left:
        Path(f"{host.scope.ssh_key}{suffix}").write_text("half", encoding="utf-8")
    assert keys.host_key(host.scope).startswith("ssh-ed25519 ")
    assert sorted(os.listdir(os.path.dirname(host.scope.ssh_key))) == ["id_ed25519", "id_ed25519.pub"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", None])
def test_a_damaged_public_key_is_derived_from_the_private_one(host: OwnHost, content: bytes | None) -> None:
    path = Path(f"{host.scope.ssh_key}.pub")
    before = path.read_text(encoding="utf-8").split()[:2]
    path.unlink()
    if content is None:
        (path / "in-the-way").mkdir(parents=True)
    else:
        path.write_bytes(content)
    assert keys.host_key(host.scope).split()[:2] == before
    assert path.is_dir() or path.read_text(encoding="utf-8").split()[:2] == before


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", None])
def test_a_damaged_private_key_is_an_error_with_a_remedy(host: OwnHost, content: bytes | None) -> None:
    path = Path(host.scope.ssh_key)
    for half in (path, Path(f"{path}.pub")):
        half.unlink()
        if content is None:
            (half / "in-the-way").mkdir(parents=True)
        else:
            half.write_bytes(content)
    with pytest.raises(HostError, match=r"the SSH key .*id_ed25519 cannot be used: ") as caught:
        keys.host_key(host.scope)
    assert caught.value.hint and f"mv {path} {path}.damaged" in caught.value.hint

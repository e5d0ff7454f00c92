"""What the tests of real parts share: a host of their own in a temporary directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wire
from image_files import BOOT_SIGNATURE
from network_host import NetworkHost
from own_host import OwnHost
from stand_ins import StandIns
from unit_steps import VM, StandIn
from vms import files

from qsysd.host import intents
from qsysd.images.catalog import Images
from qsysd.operations import create, setup
from qsysd.paths import Scope
from qsysd.qemu import machine_types
from qsysd.runtime import privileges, readiness, shutdown


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scope:
    """Return the scope below the current directory: its sockets' paths are short wherever that is."""
    monkeypatch.chdir(tmp_path)
    return Scope("")


@pytest.fixture(scope="session")
def set_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory in which `qsysd setup` has run, with a small image `tiny` besides."""
    root = tmp_path_factory.mktemp("host")
    before = os.getcwd()
    os.chdir(root)
    try:
        host = OwnHost(Scope(""))
        os.makedirs(host.scope.unit_dir)
        setup.setup(host)
        machine_types.pinned_machine(host.scope, "q35")  # remembered from here on
        Path("tiny.raw").write_bytes(bytes(510) + BOOT_SIGNATURE + b"\1" * 65024)
        Images(host.scope).import_file("tiny.raw", "tiny", default_user="me")
        os.unlink("tiny.raw")
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def host(set_up: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Return a host that was set up, all of it below the current directory."""
    # No power cut here: a test that waits for a busy disk is slow for nothing.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # The SSH keys of the person who runs the tests are not part of them.
    monkeypatch.setenv("HOME", os.getcwd())
    for variable in ("SUDO_UID", "PKEXEC_UID"):
        monkeypatch.delenv(variable, raising=False)
    shutil.copytree(set_up, ".", symlinks=True, dirs_exist_ok=True)
    return OwnHost(scope)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Return a directory that comes first in PATH, for programs that record how they are called."""
    made = StandIns(tmp_path / "stand-ins")
    monkeypatch.setenv("PATH", f"{made.directory}:{os.environ['PATH']}")
    return made


@pytest.fixture
def qemu(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Start a process for QEMU, with its variables as systemd sets them."""
    stand_in = StandIn(scope)
    os.makedirs(scope.vm_dir(VM))
    monkeypatch.setenv("MAINPID", str(stand_in.process.pid))
    monkeypatch.setenv("QSYSD_STOP_TIMEOUT", "60")
    monkeypatch.setattr(shutdown, "PRESS_INTERVAL", 0.05)
    # the peers' sockets are this user's: nobody else has to be become
    monkeypatch.setattr(privileges, "drop_privileges", lambda scope, vm: None)
    monkeypatch.setattr(readiness, "drop_privileges", lambda scope, vm, permanently: None)
    try:
        with stand_in.stack:
            yield stand_in
            stand_in.process.kill()
    finally:
        stand_in.process.kill()
        stand_in.process.wait()


@pytest.fixture
def journal(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Return the lines that the helper has written to the journal since the last call."""
    return lambda: capfd.readouterr().err.splitlines()


@pytest.fixture
def directory(scope: Scope) -> Path:
    """Return a VM's directory with a disk in it, as `create` leaves it."""
    path = Path(scope.vm_dir(VM))
    path.mkdir(parents=True, exist_ok=True)
    (path / "disk0.qcow2").write_bytes(b"disk")
    (path / "disk0.qcow2").chmod(0o600)
    return path


@pytest.fixture
def network_namespace() -> Iterator[None]:
    """An empty network namespace."""
    try:
        with wire.namespace():
            yield
    except PermissionError:
        pytest.skip("no network namespaces here")


@pytest.fixture
def net(network_namespace: None) -> Iterator[NetworkHost]:
    """A host with the network `default`. The directory is open to dnsmasq's user, as /var/lib is."""
    root = tempfile.mkdtemp(prefix="qsysd-network-")
    try:
        os.chmod(root, 0o755)
        made = NetworkHost(root)
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(root)


@pytest.fixture
def vm(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Return a host with the VMs web1 and web2, which are off."""
    monkeypatch.setattr("qsysd.host.journal.failure", lambda *_: "")
    for name in ("web1", "web2"):
        text = f"name: {name}\nimage: tiny\ndisks: [{{}}]\nseed: false\n"
        create.create(host, text, "x", start=False, enable=False)
    host.fake.calls.clear()
    return host


@pytest.fixture
def unchanged(host: OwnHost) -> Callable[[], None]:
    """Return a check that nothing was created since the test began, and nothing is pending."""
    before = files()

    def check() -> None:
        assert files() == before
        assert intents.pending(host.scope) == []
        assert not [call for call in host.fake.calls if call.startswith("StartUnit")]

    return check

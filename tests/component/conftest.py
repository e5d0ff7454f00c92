"""What the tests of real parts share: a host of their own in a temporary directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from image_files import BOOT_SIGNATURE
from own_host import OwnHost
from stand_ins import StandIns

from qsysd.images import Images
from qsysd.operations import setup
from qsysd.paths import Scope
from qsysd.qemu import machine_types


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
    shutil.copytree(set_up, ".", symlinks=True, dirs_exist_ok=True)
    return OwnHost(scope)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Return a directory that comes first in PATH, for programs that record how they are called."""
    made = StandIns(tmp_path / "stand-ins")
    monkeypatch.setenv("PATH", f"{made.directory}:{os.environ['PATH']}")
    return made

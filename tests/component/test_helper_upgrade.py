"""The steps of this version end VMs that the version of commit f8aa729 started.

What that version wrote is repeated here literally: these formats must stay readable.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from network_host import OWNER, WEB1, NetworkHost, interfaces
from unit_steps import VM, StandIn, owners
from wire import run

from qsysd.paths import Scope
from qsysd.runtime import cleanup, shutdown, tampering, taps
from qsysd.runtime.ports import parse_alias
from qsysd.store import Started, Store

RECORD = "run/qsysd/started/web1"
ROOT = "run/qsysd/roots/web1"
DIRECTORY = "var/lib/qsysd/vms/web1"
TAP = "qv-web1-0"
ENVIRONMENT = {
    "QSYSD_VM": "web1",
    "QSYSD_DIGEST": "0123456789abcdef",
    "QSYSD_DEFINITION": "fedcba9876543210",
    "QSYSD_NICS": "qv-web1-0,52:54:00:00:00:01,qb-default,default,10.83.0.10",
    "QSYSD_STOP_TIMEOUT": "90",
    "QSYSD_READ_FILES": "",
    "QSYSD_MEMORY_MIB": "512",
    "QSYSD_CPUS": "2",
    "QSYSD_ACCEL": "-accel tcg",
}


@pytest.fixture
def earlier(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what a VM has while it runs, but for its TAP."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in (
        *("dev", "etc", "proc", "root", "run", "run/host", "sys", "tmp", "usr", "var", "var/tmp"),
        *("var/lib", "var/lib/qsysd", "var/lib/qsysd/vms", "var/lib/qsysd/vms/web1"),
    ):
        os.makedirs(f"{ROOT}/{name}", exist_ok=True)
    os.symlink("usr/lib", f"{ROOT}/lib")
    os.makedirs(os.path.dirname(RECORD))
    Path(RECORD).write_text(
        "0123456789abcdef\nQSYSD_MEMORY_MIB=512\nQSYSD_CPUS=2\nQSYSD_ACCELERATOR=tcg\n", encoding="ascii"
    )


@pytest.mark.usefixtures("earlier")
def test_the_record_of_a_start_is_read(scope: Scope) -> None:
    assert Store(scope).started(VM) == Started("0123456789abcdef", 512, 2, "tcg")


@pytest.mark.usefixtures("earlier")
def test_a_guest_is_powered_off_and_nothing_is_left(
    qemu: StandIn, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSYSD_NICS", "")
    peer = qemu.monitor(lambda connection: connection.serve(qemu.obedient()), "stop")
    assert Path(peer.path).resolve() == Path(DIRECTORY, "qmp-stop.sock").resolve()
    shutdown.stop(scope, VM)
    assert qemu.commands() == ["system_powerdown"]
    assert not os.path.exists(RECORD) and not os.path.exists(ROOT)


@pytest.mark.needs_root
@pytest.mark.usefixtures("earlier")
def test_a_tap_is_checked_and_removed_with_its_vm(net: NetworkHost, directory: Path) -> None:
    run("ip", "tuntap", "add", "dev", TAP, "mode", "tap", "user", str(OWNER), "vnet_hdr")
    alias = "qsysd:web1:qv-web1-0,52:54:00:00:00:01,qb-default,default,10.83.0.10"
    run("ip", "link", "set", "dev", TAP, "alias", alias, "address", "fe:54:00:00:00:01")
    run("ip", "link", "set", "dev", TAP, "master", "qb-default", "up")
    os.makedirs(net.scope.runtime(VM))
    os.chown(net.scope.runtime(VM), OWNER, OWNER)
    assert taps.existing_taps() == {TAP: alias}
    assert taps.restore_missing_rules(net.scope) == [TAP]
    assert tampering.find(net.scope) == []
    assert parse_alias(alias) == ("web1", WEB1)
    cleanup.after_stop(Scope(""), VM)
    assert TAP not in interfaces()
    assert not os.path.exists(RECORD) and not os.path.exists(ROOT)
    assert owners(directory) == {(0, 0)}

"""What doctor reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_host import OwnHost
from stand_ins import StandIns

from qsysd.host import intents
from qsysd.operations import create, doctor
from qsysd.paths import Scope
from qsysd.runtime import kvm, spawn


def levels(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.subject: finding.level for finding in findings}


@pytest.fixture
def healthy(host: OwnHost, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Return a host on which doctor finds what it needs, or says what is missing for each test."""
    for name in ("qsysd-network@default.service", "qsysd-dhcp@default.service"):
        host.fake.set(name, "active", "running")
    answers = (
        '"--version") echo "QEMU emulator version 7.2" ;;',
        '"-machine help") echo "q35  PC (alias of pc-q35-7.2)" ;;',
        "*) exit 85 ;;",
    )
    stand_ins.add("qemu-system-x86_64", "\n".join(['case "$*" in', *answers, "esac"]))
    return host


def test_doctor_never_raises_and_names_a_remedy_for_whatever_is_wrong(healthy: OwnHost) -> None:
    for finding in doctor.examine(healthy):
        assert finding.level in ("ok", "warning", "missing")
        if finding.level != "ok":
            assert finding.remedy, finding


def test_doctor_on_a_host_without_a_bus(healthy: OwnHost) -> None:
    healthy.fake.gone = True
    findings = doctor.examine(healthy)
    assert levels(findings)["systemd"] == "missing"
    # the other checks are made all the same
    assert "sockets" in levels(findings)


def test_doctor_on_a_host_that_was_never_set_up(scope: Scope) -> None:
    findings = {finding.subject: finding for finding in doctor.examine(OwnHost(scope))}
    assert findings["set-up"].level == "missing"
    assert findings["set-up"].remedy == "qsysd setup"


def test_doctor_names_the_package_of_a_missing_program(
    healthy: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = spawn.find
    monkeypatch.setattr(spawn, "find", lambda program: None if program == "genisoimage" else real(program))
    findings = {finding.subject: finding for finding in doctor.examine(healthy)}
    assert (findings["genisoimage"].level, findings["genisoimage"].remedy) == (
        "missing",
        "apt install genisoimage",
    )


def test_doctor_names_the_units_of_a_network_that_are_down(healthy: OwnHost) -> None:
    healthy.fake.set("qsysd-dhcp@default.service", "failed", "failed")
    findings = {finding.subject: finding for finding in doctor.examine(healthy)}
    assert findings["network default"].level == "missing"
    assert findings["network default"].remedy == "systemctl restart qsysd-dhcp@default.service"


def test_doctor_finds_half_made_and_broken_vms(healthy: OwnHost) -> None:
    create.create(healthy, "name: web1\nimage: tiny\ndisks: [{}]\n", "x", start=False)
    Path(healthy.scope.environment("web1")).write_text("", encoding="utf-8")
    create.create(healthy, "name: web2\nimage: tiny\ndisks: [{}]\n", "x", start=False)
    Path(healthy.scope.definition("web2")).write_text("name: web2\nmemory: no\n", encoding="utf-8")
    intents.begin(healthy, "web3", "delete")
    findings = {finding.subject: finding for finding in doctor.examine(healthy)}
    assert findings["web1"].remedy == "qsysd render web1"
    assert "web2.yaml:2: memory" in findings["web2"].message
    assert findings["web3"].remedy == "qsysd recover"


def test_doctor_tells_that_vms_run_without_kvm(
    healthy: OwnHost, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "probe", lambda: "failed to set MSR 0x10a")
    findings = {finding.subject: finding for finding in doctor.examine(healthy)}
    assert findings["KVM"].level == "warning"
    assert "failed to set MSR 0x10a" in findings["KVM"].message


def test_doctor_says_when_socket_paths_are_too_long(set_up: Path, tmp_path: Path) -> None:
    host = OwnHost(Scope(str(tmp_path / ("x" * 90))))
    findings = {finding.subject: finding for finding in doctor.examine(host)}
    assert findings["sockets"].level == "missing"


def test_a_qemu_without_words_does_not_trouble_doctor(healthy: OwnHost, stand_ins: StandIns) -> None:
    stand_ins.add("qemu-system-x86_64", "exit 0")
    assert doctor.examine(healthy)

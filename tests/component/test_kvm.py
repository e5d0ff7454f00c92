"""KVM is used only where it runs a guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import systemd_syntax
from stand_ins import StandIns

from qsysd.paths import Scope
from qsysd.runtime import kvm


@pytest.fixture
def device_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host have a /dev/kvm, whatever the machine has."""
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/kvm" or real(path))


@pytest.mark.parametrize("content", [b"", b"garbage\n", b"\xff\xfe", b"# kvm"])
def test_an_accelerator_that_is_damaged_is_chosen_again(
    scope: Scope, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(kvm, "probe", lambda: "no KVM")
    os.makedirs(scope.runtime_dir)
    Path(scope.acceleration_file).write_bytes(content)
    assert kvm.chosen(scope) == ("tcg", "no KVM")


@pytest.mark.usefixtures("device_kvm")
def test_kvm_that_runs_a_guest_is_chosen(scope: Scope, stand_ins: StandIns) -> None:
    stand_ins.add("qemu-system-x86_64", "exit 85")
    kvm.ensure(scope)
    assert Path(scope.acceleration_file).read_text(encoding="utf-8") == (
        "# kvm: it ran a guest\nQSYSD_ACCEL=-accel kvm\nQSYSD_CPU=-cpu host\n"
    )
    (call,) = stand_ins.calls("qemu-system-x86_64")
    assert call[call.index("-accel") + 1] == "kvm"
    # of the guest's file nothing is left
    assert not os.path.exists(call[call.index("-kernel") + 1])


@pytest.mark.usefixtures("device_kvm")
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo 'failed to set MSR 0x10a' >&2; kill -ABRT $$", "failed to set MSR 0x10a"),
        ("echo 'Could not access KVM kernel module: Permission denied' >&2; exit 1", "Permission denied"),
        ("exit 0", "QEMU ended with status 0"),
        ("kill -SEGV $$", "QEMU ended with status -11"),
        ("sleep 1000", "a guest of a million instructions did not end within 0.2 s"),
    ],
)
def test_kvm_that_runs_no_guest_is_not_chosen_and_the_reason_is_kept(
    scope: Scope, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    if "sleep" in body:
        monkeypatch.setattr(kvm, "PROBE_TIMEOUT", 0.2)
        body = "exec sleep 1000"
    stand_ins.add("qemu-system-x86_64", body)
    accel, words = kvm.chosen(scope)
    assert accel == "tcg"
    assert reason in words
    lines = Path(scope.acceleration_file).read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ["QSYSD_ACCEL=-accel tcg", "QSYSD_CPU=-cpu max,erms=off,fsrm=off"]


@pytest.mark.usefixtures("device_kvm")
def test_words_of_qemu_cannot_become_a_line_of_their_own(scope: Scope, stand_ins: StandIns) -> None:
    stand_ins.add("qemu-system-x86_64", r"printf 'x\nA=\033[2J\ry\\' >&2; exit 1")
    kvm.ensure(scope)
    text = Path(scope.acceleration_file).read_text(encoding="utf-8")
    assert systemd_syntax.environment_file(text) == {
        "QSYSD_ACCEL": "-accel tcg",
        "QSYSD_CPU": "-cpu max,erms=off,fsrm=off",
    }
    assert "\x1b" not in text


@pytest.mark.usefixtures("device_kvm")
def test_a_host_is_tried_once_until_it_boots_again_or_somebody_asks(
    scope: Scope, stand_ins: StandIns
) -> None:
    stand_ins.add("qemu-system-x86_64", "exit 85")
    for _ in range(3):
        kvm.ensure(scope)
    assert len(stand_ins.calls("qemu-system-x86_64")) == 1
    stand_ins.add("qemu-system-x86_64", "exit 1")
    kvm.ensure(scope, again=True)
    assert kvm.chosen(scope)[0] == "tcg"


def test_no_device_needs_no_trial(scope: Scope, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/kvm" and real(path))
    stand_ins.add("qemu-system-x86_64", "exit 85")
    assert kvm.chosen(scope) == ("tcg", "/dev/kvm does not exist")
    assert stand_ins.calls("qemu-system-x86_64") == []

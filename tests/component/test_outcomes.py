"""What the outcomes of verbs hold: the states before and after."""

from __future__ import annotations

import pytest
from own_host import OwnHost

from qsysd import paths
from qsysd.host import journal
from qsysd.operations import create, power

UNIT = paths.unit("web1")


@pytest.fixture
def vm(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Return a host with the VM web1, which is off."""
    monkeypatch.setattr(journal, "failure", lambda *_: "")
    create.create(host, "name: web1\nimage: tiny\nseed: false\n", "x", start=False, enable=False)
    return host


@pytest.mark.parametrize(
    ("verb", "before", "active"),
    [("start", "inactive", "active"), ("start", "active", "active"), ("restart", "active", "active"),
    ("stop", "active", "inactive"), ("stop", "inactive", "inactive"), ("kill", "active", "inactive")],
)  # fmt: skip
def test_an_outcome_has_the_states_before_and_after(vm: OwnHost, verb: str, before: str, active: str) -> None:
    vm.fake.set(UNIT, before, "running" if before == "active" else "dead")
    (outcome,) = getattr(power, verb)(vm, ["web1"])
    assert (outcome.before, outcome.after) == (before, active)


@pytest.mark.parametrize("verb", ["enable", "disable"])
def test_enable_and_disable_show_whether_the_vm_started_at_host_boot(vm: OwnHost, verb: str) -> None:
    power.enable(vm, ["web1"])
    (outcome,) = getattr(power, verb)(vm, ["web1"])
    assert (outcome.before, outcome.after) == ("enabled", f"{verb}d")


def test_a_start_that_fails_has_the_state_that_it_left(vm: OwnHost) -> None:
    vm.fake.results[UNIT] = "failed"
    (outcome,) = power.start(vm, ["web1"])
    assert (outcome.state, outcome.before, outcome.after) == ("failed", "inactive", "failed")

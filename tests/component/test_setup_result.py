"""What `setup` returns after an upgrade, and how `doctor` names what it finds."""

from __future__ import annotations

from pathlib import Path

from own_host import OwnHost

from qsysd import paths
from qsysd.cli.setup import STEP_TEXTS
from qsysd.operations import create, doctor, setup


def test_setup_names_the_running_vms_that_a_restart_would_change(host: OwnHost) -> None:
    for name in ("web1", "web2", "web3", "web10"):
        create.create(host, f"name: {name}\nimage: tiny\nseed: false\n", start=False)
        host.fake.set(paths.unit(name), "active", "running")
    Path(host.scope.started_dir).mkdir(parents=True, exist_ok=True)
    for name, digest in (
        ("web1", host.store.summary("web1").digest),
        ("web10", "0123456789abcdef"),
        ("web2", "0123456789abcdef"),
    ):
        Path(host.scope.started_record(name)).write_text(f"{digest}\n", encoding="ascii")
    done = setup.setup(host)
    # Of web3, an older version did not record what it was started with.
    assert (done.steps, done.outdated) == ([], ["web2", "web10"])
    host.fake.set(paths.unit("web2"), "inactive", "dead")
    assert setup.setup(host).outdated == ["web10"]


def test_every_step_has_a_text() -> None:
    assert set(STEP_TEXTS) == set(setup.Action)


def test_doctor_names_a_network_whose_definition_is_not_valid(host: OwnHost) -> None:
    Path(host.scope.network_definition("lan")).write_text("name: [", encoding="utf-8")
    found = [finding for finding in doctor.examine(host) if finding.subject.startswith("network")]
    assert [finding.subject for finding in found] == ["network default", "network lan"]
    (_, lan) = found
    assert lan.level is doctor.Level.WARNING
    assert "lan.yaml" in lan.message

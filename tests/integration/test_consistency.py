"""Differences between definitions, files and what systemd has loaded are reported or repaired."""

from __future__ import annotations

import shlex

from labtest import LabHost, tiny_options

from tests.integration.conftest import VMFactory
from tests.integration.helpers import (
    FROZEN,
    active,
    at_once,
    create,
    memory_in_force,
    refused,
    status,
    unit,
    unit_journal,
)

# Jobs do not end before this file exists.
GATE = "/run/gate"
GATED = ("ExecStartPre", "ExecStopPost")
# Ends with an error if the jobs do not exist at one time: then nothing was tested.
WAIT_FOR_THREE_JOBS = (
    "n=0; until [ $(systemctl list-jobs --no-legend 'qemu-vm@*' | wc -l) = 3 ]; "
    "do n=$((n+1)); [ $n -lt 200 ] || exit 1; sleep 0.1; done"
)


def test_start_uses_a_definition_that_was_restored_with_an_old_time_stamp(
    host: LabHost, vm: VMFactory
) -> None:
    name = vm()
    create(host, name, options=FROZEN)
    path = f"/etc/qsysd/vms/{name}.yaml"
    host.sh(f"sed -i 's/160M/176M/' {path}; touch -d 2020-01-01 {path}")
    # systemctl uses the existing rendering, which the journal reports.
    host.systemctl("restart", unit(name))
    assert memory_in_force(host, name) == "size=160M"
    assert f"{path} was changed after it was rendered" in unit_journal(host, name)
    assert [line.partition(":")[0] for line in status(host, name)["pending"]] == ["render", "restart"]
    host.qsysd("restart", name)
    assert memory_in_force(host, name) == "size=176M"
    assert status(host, name)["pending"] == []


def test_a_start_without_the_rendered_drop_in_is_refused(any_host: LabHost, vm: VMFactory) -> None:
    host, name = any_host, vm()
    # Another unit that refers to it keeps the unit loaded over its stop.
    create(host, name, options=FROZEN)
    create(host, vm("other"), options=[*FROZEN, "--depends-on", name])
    rendered = f"/etc/systemd/system/{unit(name)}.d/50-qsysd.conf"
    text = host.read(rendered)
    host.qsysd("stop", name)
    host.systemctl("revert", unit(name))
    assert not host.exists(rendered)
    assert host.property(unit(name), "TimeoutStopUSec") == "2min"
    assert host.run(["systemctl", "start", unit(name)], check=False).returncode != 0
    assert active(host, name) == "failed/failed"
    assert host.property(unit(name), "ExecMainStatus") == "7" or "status=7" in unit_journal(host, name)
    assert f"has not loaded {rendered}" in unit_journal(host, name)
    # systemd 252: after the file was restored, NeedDaemonReload is not set.
    host.write(rendered, text)
    assert host.run(["systemctl", "start", unit(name)], check=False).returncode != 0
    host.qsysd("start", name)
    assert host.property(unit(name), "TimeoutStopUSec") == "31s"
    assert active(host, name) == "active/running"


def test_commands_continue_when_systemd_or_the_bus_restarts(any_host: LabHost, vm: VMFactory) -> None:
    host = any_host
    stopped, started, created = vm("stopped"), vm("started"), vm("created")
    template = "/etc/systemd/system/qemu-vm@.service.d/90-gate.conf"
    create(host, stopped, options=FROZEN)
    create(host, started, options=[*FROZEN, "--no-start"])
    lines = [f"{step}=+/bin/sh -c 'until [ -e {GATE} ]; do sleep 0.1; done'" for step in GATED]
    host.write(template, "\n".join(["[Service]", *lines, ""]))
    host.systemctl("daemon-reload")
    try:
        for disturbance in ("systemctl daemon-reexec", "systemctl restart dbus"):
            host.sh(f"rm -f {GATE}")
            done = at_once(
                host,
                f"qsysd stop {stopped}",
                f"qsysd start {started}",
                shlex.join(["qsysd", "create", created, *tiny_options(), *FROZEN]),
                f"({WAIT_FOR_THREE_JOBS} && {disturbance}); status=$?; touch {GATE}; exit $status",
            )
            assert [status for status, _ in done] == [0, 0, 0, 0], "\n".join(text for _, text in done)
            states = [active(host, name) for name in (stopped, started, created)]
            assert states == ["inactive/dead", "active/running", "active/running"]
            host.qsysd("kill", started)
            host.qsysd("delete", "--yes", created)
            host.qsysd("start", stopped)
    finally:
        host.sh(f"touch {GATE}; rm {template}; systemctl daemon-reload")


def test_a_vm_without_a_definition_and_a_replaced_image_are_reported(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    host.sh("truncate -s 16M /root/one.raw; cp /root/one.raw /root/two.raw; echo x >>/root/two.raw")
    host.qsysd("image", "import", "/root/one.raw", "--format", "raw", "--name", "base", "--no-cloud-init")
    create(host, name, options=[*FROZEN, "--image", "base"])
    definition, image = f"/etc/qsysd/vms/{name}.yaml", "/var/lib/qsysd/images/base"
    # Without its definition it runs, is listed, and can be stopped.
    host.sh(f"mv {definition} /root/kept.yaml; rm /root/one.raw")
    assert f"{name}  no definition, active" in host.qsysd("list").stdout
    assert "has no definition" in refused(host, "restart", name, status=3)
    host.qsysd("stop", name)
    assert active(host, name) == "inactive/dead"
    # Its image was replaced by another one of the same name.
    host.sh(f"mv /root/kept.yaml {definition}; mkdir /root/old; mv {image}.* /root/old")
    host.qsysd("image", "import", "/root/two.raw", "--format", "raw", "--name", "base", "--no-cloud-init")
    assert "image base is not the one" in refused(host, "start", name, status=1)
    assert "image base is not the one" in host.qsysd("doctor", check=False).stdout
    host.sh(f"mv /root/old/* {image[:-5]}/; rm -r /root/old /root/two.raw")
    host.qsysd("start", name)
    # It can be deleted without its definition.
    host.sh(f"rm {definition}")
    before = host.qsysd("list").stdout
    assert "no definition" in before
    host.qsysd("delete", "--yes", name)
    assert name not in host.qsysd("list").stdout
    assert not host.glob(f"/etc/systemd/system/*/{unit(name)}")
    host.qsysd("image", "rm", "--yes", "base")

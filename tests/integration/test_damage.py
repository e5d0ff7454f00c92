"""Damaged files with a real systemd: the VM can be deleted, and other VMs are not affected."""

from __future__ import annotations

import json

from labtest import LabHost

from tests.integration.conftest import VMFactory
from tests.integration.helpers import FROZEN, active, create, listed, refused, traces, unit

DEFINITIONS = "/etc/qsysd/vms"
UNITS = "/etc/systemd/system"
HELPER = "/var/lib/qsysd/helper/current"
INTENTS = "/var/lib/qsysd/intents"


def test_a_vm_with_damaged_files_is_deleted_while_another_runs(host: LabHost, vm: VMFactory) -> None:
    other = vm("other")
    create(host, other, options=FROZEN)
    before = traces(host)
    bad = vm("bad")
    create(host, bad, options=FROZEN)
    drop_in = f"{UNITS}/{unit(bad)}.d/50-qsysd.conf"
    host.sh(
        f"cd {DEFINITIONS}; rm {bad}.yaml; mkdir -p {bad}.yaml/deep; touch {bad}.yaml/x\n"
        f"rm {DEFINITIONS}/{bad}.env; mkdir {DEFINITIONS}/{bad}.env\n"
        f"printf '\\377\\376[Service\\nTimeoutStopSec=x\\n' >{drop_in}\n"
        f"rm /run/qsysd/started/{bad}; mkdir -p /run/qsysd/started/{bad}/deep\n"
        "systemctl daemon-reload"
    )
    assert listed(host, bad)["active"] == "active"
    host.qsysd("status", bad, other)
    host.qsysd("stop", other)
    host.qsysd("start", other)
    said = host.qsysd("delete", "--yes", bad).stderr
    assert f"{DEFINITIONS}/{bad}.yaml (a directory, with everything in it)" in said
    assert traces(host) == before


def test_a_vm_is_deleted_without_the_units_template(any_host: LabHost, vm: VMFactory) -> None:
    host = any_host
    before = traces(host)
    names = (vm("running"), vm("off"))
    create(host, names[0], options=FROZEN)
    create(host, names[1], options=[*FROZEN, "--no-start"])
    template = f"{UNITS}/qemu-vm@.service"
    host.sh(f"mv {template} /root/; systemctl daemon-reload")
    try:
        host.qsysd("delete", "--yes", *names)
    finally:
        host.sh(f"mv /root/qemu-vm@.service {template}; systemctl daemon-reload")
    assert traces(host) == before


def test_an_unknown_file_among_the_intents_prevents_no_command(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    host.sh(
        f"cd {INTENTS}; mkdir -p web1.json/x vm.{name}.create.json/x; touch notes vm.web1.clone.json\n"
        "touch \"$(printf 'bad\\377.json')\"; printf '\\377' >vm.gone.delete.json; printf '\\377' >gone2.json"
    )
    try:
        create(host, name, options=FROZEN)
        for words in ("status", "stop", "start", "enable"):
            host.qsysd(words, name)
        host.qsysd("setup")
        assert not host.glob(f"{INTENTS}/*gone*")
        found = [each["subject"] for each in host.qsysd_json("doctor") if "intent" in each["message"]]
        assert sorted(found) == ["intents"] * 4 + ["web1"]
        host.qsysd("delete", "--yes", name)
        assert host.qsysd("recover").stdout == "nothing to recover\n"
    finally:
        host.sh(f"rm -r {INTENTS}/*")


def test_a_damaged_helper_is_reported_by_doctor_and_replaced_by_setup(host: LabHost, vm: VMFactory) -> None:
    name, other = vm(), vm("other")
    for each in (name, other):
        create(host, each, options=FROZEN)
    host.qsysd("stop", name)
    host.sh(
        f"cd {HELPER}/qsysd/runtime; truncate -s 200 __pycache__/helper.*.pyc; echo 'def broken(:' >helper.py"
    )
    said = refused(host, "start", name, status=1)
    assert "did not start" in said
    done = host.qsysd("doctor", "--json", check=False)
    assert done.returncode == 7
    messages = [each["message"] for each in json.loads(done.stdout) if each["remedy"] == "qsysd setup"]
    assert len(messages) == 2 and all("helper." in message for message in messages)
    assert "installed the units' helper" in host.qsysd("setup").stdout
    host.qsysd("start", name)
    # A VM that was started with the old directory stops with the new one.
    host.qsysd("stop", other)
    assert active(host, other) == "inactive/dead"
    assert not [each for each in host.qsysd_json("doctor") if each["subject"] == "set-up" and each["remedy"]]

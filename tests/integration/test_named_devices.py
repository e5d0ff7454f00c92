"""A VM whose disks and NICs have names: what one of them has does not depend on the others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import pytest
from labtest import LabHost, tiny_options

from tests.integration.conftest import VMFactory
from tests.integration.helpers import (
    assert_no_force,
    assert_traces,
    status,
    traces,
    wait_ping,
    wait_ready,
)

DISKS = [{"name": "root", "size": "16M"}, {"name": "data", "size": "16M"}]


def definition(name: str, nics: Sequence[Mapping[str, str]]) -> str:
    """Return the definition of a VM with the tiny guest, two disks, and NICs."""
    words = tiny_options()
    given = {option.removeprefix("--"): value for option, value in zip(words[::2], words[1::2], strict=True)}
    return json.dumps({"name": name, **given, "disks": DISKS, "nics": nics})


def held(host: LabHost, tap: str) -> list[str]:
    """Return the lines of the anti-spoofing table that name a TAP."""
    return [line for line in host.sh("nft list table bridge qsysd").splitlines() if f'"{tap}"' in line]


@pytest.mark.parametrize("length", ["short", "long"])
def test_a_nic_keeps_tap_mac_and_address_when_the_one_before_it_is_removed(
    host: LabHost, vm: VMFactory, length: str
) -> None:
    # A TAP holds the names of VM and NIC, or a digest of them where those are too long.
    name = vm() if length == "long" else "nics"
    before = traces(host)
    try:
        host.qsysd("create", "--file", "-", stdin=definition(name, [{"name": "lan"}, {"name": "mgmt"}]))
        wait_ready(host, name, times=2)
        lan, mgmt = status(host, name)["nics"]
        expected = "qv_[0-9a-f]{12}" if length == "long" else f"qv-{name}-(lan|mgmt)"
        assert all(re.fullmatch(expected, nic["tap"]) for nic in (lan, mgmt))
        assert host.sh(f"cat /sys/class/net/{lan['tap']}/ifalias").startswith(f"qsysd:{name}:{lan['tap']},")
        assert {"root.qcow2", "data.qcow2"} <= set(host.sh(f"ls /var/lib/qsysd/vms/{name}").split())

        text = host.qsysd("show", name).stdout
        without = re.sub("- name: lan\n(  .*\n)*", "", text)
        assert without != text
        host.qsysd("edit", name, "--file", "-", stdin=without)
        # The guest has both NICs until it is restarted.
        assert held(host, lan["tap"]) and held(host, mgmt["tap"])
        host.qsysd("restart", name)
        wait_ready(host, name, times=3)
        assert_no_force(host, name)
        assert status(host, name)["nics"] == [mgmt]
        assert not host.exists(f"/sys/class/net/{lan['tap']}") and not held(host, lan["tap"])
        assert any(mgmt["address"] in line for line in held(host, mgmt["tap"]))
        wait_ping(host, mgmt["address"])

        host.qsysd("delete", name, "--yes")
        assert_traces(host, before)
    finally:
        host.qsysd("delete", name, "--yes", check=False)


def test_a_nic_of_an_earlier_definition_keeps_its_tap_when_the_one_before_it_is_removed(
    host: LabHost, vm: VMFactory
) -> None:
    name = vm()
    host.qsysd("create", "--file", "-", stdin=definition(name, [{}, {}]))
    wait_ready(host, name, times=2)
    first, second = status(host, name)["nics"]
    assert (first["tap"][-2:], second["tap"][-2:]) == ("-0", "-1")
    # As it was written before devices had names.
    text = re.sub("- name: net[01]\n  ", "- ", host.qsysd("show", name).stdout)
    host.write(f"/etc/qsysd/vms/{name}.yaml", text)
    host.qsysd("render", name)
    assert status(host, name)["pending"] == []
    host.qsysd("edit", name, "--file", "-", stdin=re.sub("(?<=nics:\n)- .*\n(  .*\n)*", "", text))
    host.qsysd("restart", name)
    wait_ready(host, name, times=3)
    assert status(host, name)["nics"] == [second]
    assert not host.exists(f"/sys/class/net/{first['tap']}")
    wait_ping(host, second["address"])

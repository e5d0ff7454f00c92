"""Names of disks and NICs: given or numbered, unique, and safe in file names and QEMU's ids."""

from __future__ import annotations

import json

import pytest
from definitions import START, problem, problems, valid


def test_devices_without_a_name_are_numbered() -> None:
    spec = valid("disks: [{}, {name: disk3}, {}]\nnics: [{name: net0}, {}, {}, {name: net2}]")
    assert [disk.name for disk in spec.disks] == ["disk0", "disk3", "disk1"]
    assert [nic.name for nic in spec.nics] == ["net0", "net1", "net3", "net2"]


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "a-b", "a_b", "a.b", "a,b", "a b", "a" * 16, "é", "a/b", ".."]
)
def test_what_is_not_the_name_of_a_device(name: str) -> None:
    for key in ("disks", "nics"):
        assert "is not the name of a device" in problem(f"{key}: [{{name: {json.dumps(name)}}}]")


@pytest.mark.parametrize("name", ["seed", "console", "rng0"])
def test_a_device_cannot_have_the_name_of_one_that_qsysd_adds(name: str) -> None:
    assert problems(f"disks: [{{name: {name}}}]")[0].endswith(
        "is the name of a device that qsysd adds itself"
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("disks: [{name: a}, {name: a}]", "web1.yaml:3: disks: two devices have the name 'a'"),
        ("nics: [{name: net1}, {name: net1}]", "web1.yaml:3: nics: two devices have the name 'net1'"),
    ],
)
def test_names_of_devices_are_unique(lines: str, message: str) -> None:
    assert problem(lines) == message


def test_a_disk_and_a_nic_cannot_have_one_name() -> None:
    found = problems(START + "disks: [{name: a}]\nnics: [{name: a}]")
    assert found == [
        "web1.yaml:3: disks: two devices have the name 'a'",
        "web1.yaml:4: nics: two devices have the name 'a'",
    ]


def test_a_nic_cannot_have_the_name_of_the_disk_that_an_image_gives() -> None:
    assert problem("nics: [{name: disk0}]") == "web1.yaml:3: nics: two devices have the name 'disk0'"

"""Definitions as plain mappings, as requests carry them: the same checks as for YAML, without lines."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from samples import any_vms

from qsysd.config import dump, load
from qsysd.errors import InvalidError
from qsysd.model.network import NetworkKind, NetworkSpec

VM = {"name": "web1", "image": "debian"}


def message(document: Any) -> str:
    """Return the error that a mapping gives."""
    with pytest.raises(InvalidError) as caught:
        load.parse_vm(document, "")
    return caught.value.message


def test_a_mapping_means_what_the_same_yaml_means() -> None:
    for spec in any_vms(30, seed=3):
        document = dump.plain(spec)
        assert load.parse_vm(document, "") == spec
        assert yaml.safe_load(dump.dump_vm(spec)) == document


def test_a_number_and_its_text_are_one_value() -> None:
    for document in (
        {"cpus": 2, "memory": 512, "seed": True},
        {"cpus": "2", "memory": "512", "seed": "true"},
    ):
        spec = load.parse_vm(VM | document, "")
        assert (spec.cpus, spec.memory_mib, spec.seed) == (2, 512, True)


def test_none_counts_as_left_out() -> None:
    assert load.parse_vm(VM | {"cpus": None, "nics": None}, "") == load.parse_vm(VM, "")


def test_an_empty_list_of_nics_is_a_vm_without_one() -> None:
    assert load.parse_vm(VM | {"nics": []}, "").nics == ()
    assert load.parse_vm(VM | {"nics": ()}, "").nics == ()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"cpus": True}, "cpus: 'true' is not a whole number"),
        ({"cpus": 2.5}, "cpus: '2.5' is not a whole number"),
        ({"cpus": 0}, "cpus: 0 is out of range; allowed is 1 to 1024"),
        ({"seed": 1}, "seed: '1' is neither true nor false"),
        ({"user": 486}, "user: 486 is a number in YAML, not text; write it in quotes: '486'"),
        ({"cpu": {"model": "host"}}, "cpu: must be a single value, not a list or a mapping"),
        ({"cpu": b"host"}, "cpu: must be a single value, not a list or a mapping"),
        ({"disks": "10G"}, "disks: must be a list"),
        ({"disks": b"10G"}, "disks: must be a list"),
        ({"disks": ["10G"]}, "disks[0]: must be a mapping of keys to values"),
        ({"qemu_args": [None]}, "qemu_args[0]: an empty item; write empty text as ''"),
        ({"memroy": 1}, "unknown key 'memroy'; did you mean 'memory'?"),
        ({1: 1}, "unknown key '1'"),
        ({("a", "b"): 1}, "a key must be a single value, not a list or a mapping"),
        ({None: 1}, "unknown key ''"),
        ({"user": "a\udcff"}, "user: not UTF-8 text"),
        ({"user": "a\nb"}, "user: control characters, noncharacters and line breaks are not allowed"),
    ],
)
def test_a_value_that_is_not_valid_is_reported_with_its_path(document: Any, expected: str) -> None:
    assert message(VM | document) == expected


@pytest.mark.parametrize("document", [[], "web1", 1, None])
def test_what_is_not_a_mapping_is_refused(document: Any) -> None:
    with pytest.raises(InvalidError):
        load.parse_vm(document, "")


def test_a_mapping_that_contains_itself_is_refused() -> None:
    endless: dict[str, Any] = {"name": "web1"}
    endless["disks"] = [endless]
    assert "disks[0]: unknown key 'disks'" in message(endless)


def test_a_network_can_be_a_mapping_too() -> None:
    spec = load.parse_network({"name": "lan", "subnet": "10.9.0.0/24", "host_access": True}, "")
    assert spec == NetworkSpec(name="lan", kind=NetworkKind.NAT, subnet="10.9.0.0/24", host_access=True)
    assert load.parse_network(dump.plain(spec), "") == spec

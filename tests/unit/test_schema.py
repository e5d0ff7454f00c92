"""The JSON Schema accepts what is a definition, and refuses what an editor can know to be none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from json_schema import is_valid
from samples import any_vms

from qsysd.config import dump, load, schema
from qsysd.errors import InvalidError
from qsysd.model.defaults import Defaults
from qsysd.model.field import keys
from qsysd.model.network import NetworkSpec
from qsysd.model.vm import VMSpec

ROOT = Path(__file__).parents[2]
DEFINITIONS = sorted((*(ROOT / "examples").glob("*.yaml"), *(ROOT / "tests/golden/cases").glob("*.yaml")))
NETWORKS = sorted((ROOT / "tests/golden/networks").glob("*.yaml"))
START = "name: web1\nimage: debian\n"


def accepts(text: str, kind: dict[str, Any]) -> bool:
    return is_valid(load.load_plain(text, "web1.yaml"), kind)


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_examples_and_golden_cases_are_valid(path: Path) -> None:
    assert accepts(path.read_text(encoding="utf-8"), schema.vm())


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_networks_are_valid(path: Path) -> None:
    assert accepts(path.read_text(encoding="utf-8"), schema.network())


def test_what_qsysd_writes_is_valid() -> None:
    for spec in any_vms(40, seed=5):
        assert is_valid(dump.plain(spec), schema.vm()), dump.dump_vm(spec)


@pytest.mark.parametrize(
    "lines",
    [
        "", "memory: 512", "memory: 1.5G", "memory: 512.5", "memory: 512 MiB", "cpus: 1024", "nics: []",
        "disks: [{}, {size: 20}, {name: data}]", "disks: [{size: 0.5}, {size: 1.5}]",
        "nics: [{}, {mac: '52:54:00:AB:cd:EF', address: 255.0.10.100}]", "seed: true", "accel: kvm",
        "kernel: /boot/vmlinuz\ninitrd: /x\nappend: a b", "stop_timeout: 90", "stop_timeout: 2 min",
        "qemu_args: ['', 'a,b']", "user: _x", "machine: pc-q35-7.2", "depends_on: [db1]",
    ],
)  # fmt: skip
def test_a_valid_definition_is_accepted(lines: str) -> None:
    load.parse_vm(START + lines, "web1.yaml")
    assert accepts(START + lines, schema.vm())


@pytest.mark.parametrize(
    "lines",
    [
        "memroy: 1G", "memory: 15", "memory: 1e3", "memory: 0512", "memory: [1]", "memory: -1G",
        "memory: 1_024", "memory_limit: x", "cpus: 0", "cpus: 1025", "cpus: two", "cpus: 1.5", "cpu: 'a b'",
        "accel: off", "accel: KVM", "uuid: x", "machine: Q35", "image_digest: abc", "seed: 1", "seed: yes",
        "disks: 10G", "disks: [10G]", "disks: [{sise: 10G}]", "disks: [{size: 0}]", "disks: [{name: a-b}]",
        "disks: [{name: seed}]", "nics: [{mac: '53:54:00:12:34:56'}]", "nics: [{mac: 52-54-00-12-34-56}]",
        "nics: [{address: 10.0.0.256}]", "nics: [{address: 10.0.0}]", "nics: [{network: Lan}]",
        "nics: [{name: 0a}]", "kernel: vmlinuz", "kernel: /a b", "initrd: /x", "append: x",
        "user: Root", "ssh_keys: [x]", "ssh_keys: x", "depends_on: [DB]", "depends_on: db1",
        "stop_timeout: 0", "stop_timeout: 1:30", "stop_timeout: 86401", "qemu_args: -m",
        'qemu_args: ["a\\tb"]', "qemu_args: [[a]]",
    ],
)  # fmt: skip
def test_a_definition_that_is_not_valid_is_refused(lines: str) -> None:
    with pytest.raises(InvalidError):
        load.parse_vm(START + lines, "web1.yaml")
    assert not accepts(START + lines, schema.vm())


@pytest.mark.parametrize(
    "text", ["name: web1", "image: debian", "name: Web\nimage: debian", "- name: web1", "x"]
)
def test_what_lacks_a_name_or_something_to_boot_from_is_refused(text: str) -> None:
    assert not accepts(text, schema.vm())


@pytest.mark.parametrize(
    "text",
    [
        "name: lan", "subnet: 10.9.0.0/24", "name: lan\nsubnet: 10.9.0.0/29", "name: lan\nsubnet: 10.9.0.0/8",
        "name: lan\nsubnet: fd00::/64", "name: lan\nsubnet: 10.9.0.0/24\nkind: vpn",
        "name: lan\nsubnet: 10.9.0.0/24\nmtu: 9000", "name: lan\nsubnet: 10.9.0.0/24\nhost_access: yes",
    ],
)  # fmt: skip
def test_a_network_that_is_not_valid_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        load.parse_network(text, "lan.yaml")
    assert not accepts(text, schema.network())


@pytest.mark.parametrize("subnet", ["10.0.0.0/16", "10.9.8.0/28", "10.9.8.0/255.255.255.0"])
def test_a_valid_network_is_accepted(subnet: str) -> None:
    text = f"name: lan\nsubnet: {subnet}\nhost_access: true"
    load.parse_network(text, "lan.yaml")
    assert accepts(text, schema.network())


def test_defaults_are_accepted_or_refused() -> None:
    assert is_valid(None, schema.defaults())
    assert is_valid(dump.plain(Defaults()), schema.defaults())
    for text in ("memory: 1", "disk_size: x", "cpu: host"):
        assert not accepts(text, schema.defaults())


@pytest.mark.parametrize(
    ("kind", "model"), [(schema.vm, VMSpec), (schema.network, NetworkSpec), (schema.defaults, Defaults)]
)
def test_each_key_has_a_description_and_the_schema_is_json(kind: Any, model: type) -> None:
    found = json.loads(json.dumps(kind()))
    assert tuple(found["properties"]) == keys(model)
    assert all(description.strip() for description in descriptions(found))


def descriptions(found: dict[str, Any]) -> Iterator[str]:
    """Yield the descriptions of the keys of a schema and of its parts; "" for one without."""
    for each in found["properties"].values():
        yield each.get("description", "")
        if "properties" in each.get("items", {}):
            yield from descriptions(each["items"])


def test_the_default_of_a_key_is_in_the_schema() -> None:
    found = schema.vm()["properties"]
    written = {key: each["default"] for key, each in found.items() if "default" in each}
    assert written == {"memory": "1G", "cpus": 1, "accel": "auto", "stop_timeout": "90s"}

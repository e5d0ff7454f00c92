"""Definitions as files: damaged and hostile ones, what is written, networks, plain values."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest
from definitions import parse, problems
from samples import NASTY, UUID, any_vms, vm

from qsysd.config import dump, load
from qsysd.errors import InvalidError
from qsysd.model.defaults import Defaults
from qsysd.model.disk import Disk
from qsysd.model.field import keys
from qsysd.model.network import NetworkKind, NetworkSpec
from qsysd.model.vm import Accel, VMSpec

GIB = 1024**3


# broken and hostile files


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n", "--- \n...\n"])
def test_an_empty_file_is_refused(text: str) -> None:
    assert problems(text) == ["web1.yaml: the file is empty"]


@pytest.mark.parametrize(
    ("text", "line"),
    [("name: web1\n  memory: 1G", 2), ("name: 'web1", 1), ("name: web1\n\tcpus: 1", 2), ("a: [1, 2", 1),
    ("a: *b", 1),
     ("a: 1\n---\nb: 2", 2), ("a: @x", 1), ("a: `x`", 1), ("%YAML 9.9\n---\na: 1", 1)],
)  # fmt: skip
def test_yaml_that_cannot_be_parsed_is_refused_with_its_line(text: str, line: int) -> None:
    (message, *_) = problems(text)
    # libyaml notices some things only in the next line
    starts = tuple(f"web1.yaml:{number}: not valid YAML: " for number in (line, line + 1))
    assert message.startswith(starts)


def test_anchors_are_resolved() -> None:
    spec = parse("name: &n web1\nimage: debian\ndisks: [&d {size: 10G}, *d]\nmemory: &m 1G\n")
    assert spec.disks == (Disk("disk0", 10 * GIB), Disk("disk1", 10 * GIB))
    assert problems("name: &n web1\nimage: debian\nmemory: &m [1]\ncpus: *m")[1].startswith("web1.yaml:3: ")


@pytest.mark.parametrize(
    "text",
    [
        "&a [*a]",
        "&a {name: *a}",
        "name: web1\nimage: debian\ndisks: &a [*a]",
        "name: web1\nimage: debian\nqemu_args: &a [*a, *a]",
        "name: web1\n? &a [*a]\n: 1",
        "name: !!python/object/apply:os.system [id]",
        "!!python/object/new:os.system [id]",
        "name: !!binary gIGC",
        "name: !!set {web1}",
        "name: !!null web1",
        "name: web1\nimage: debian\nqemu_args: [!!int x]",
        "\x00",
        "name: web1\x01",
        "\ufeff\ufeffname: web1",
        "name: \ud800",
        "\udcff: 1",
        'name: "\\ud800"',
        "name: \ufffe",
        "[" * 2000,
        "{a: " * 1000,
        "- " * 5000,
        "[" * 900 + "]" * 900,
        "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c]\nqemu_args: [*d,*d]",
        "name: " + "x" * 100_000,
        "cpus: " + "9" * 5000,
        "memory: " + "9" * 5000,
        "memory: " + "9" * 400 + "G",
        "stop_timeout: " + "9" * 5000,
        "name: web1\nimage: debian\nnics:\n" + "- {}\n- x\n" * 300,
    ],
)
def test_hostile_files_are_refused_with_a_message(text: str) -> None:
    lines = problems(text)
    assert all(line.startswith("web1.yaml") for line in lines)


def test_random_text_is_a_definition_or_refused() -> None:
    chance = random.Random(7)
    pieces = [
        *NASTY, *keys(VMSpec), "\n", "\n  ", "\n- ", ": ", ": ", ", ", "[", "]", "{", "}",
        "name: web1\n", "image: debian\n",
        "size: 1G", "mac: ", "|\n", ">-\n", "? ", "!!int ", "!!str ", "&x ", "*x", "\t", "\r", "\x00",
        "\x85", "\ud834",
    ]  # fmt: skip
    for _ in range(200):
        text = "".join(chance.choice(pieces) for _ in range(chance.randint(1, 14)))
        try:
            assert isinstance(parse(text), VMSpec)
        except InvalidError:
            continue


def test_a_damaged_definition_is_a_definition_or_refused() -> None:
    chance = random.Random(8)
    for spec in any_vms(25, seed=8):
        text = dump.dump_vm(spec)
        cut = chance.randrange(len(text))
        text = text[:cut] + chance.choice(NASTY) + text[cut + chance.randrange(3) :]
        try:
            again = parse(text)
        except InvalidError:
            continue
        assert parse(dump.dump_vm(dataclasses.replace(again, uuid=UUID))).name == again.name


# writing


def test_a_spec_that_is_written_and_read_is_the_same() -> None:
    for spec in any_vms(60):
        assert parse(dump.dump_vm(spec), name=spec.name) == spec, dump.dump_vm(spec)


def test_a_written_spec_does_not_depend_on_the_defaults() -> None:
    others = Defaults(Accel.KVM, 77, 7, 7 * GIB, "lan", 7)
    for spec in any_vms(10, seed=2):
        assert parse(dump.dump_vm(spec), defaults=others) == spec


def test_a_written_definition_is_readable_yaml() -> None:
    assert dump.dump_vm(vm(ssh_keys=(), user=None)) == (
        f"name: web1\nuuid: {UUID}\nmachine: pc-q35-7.2\nmemory: 512M\ncpus: 2\naccel: tcg\nimage: debian\n"
        f"image_digest: {'0123456789abcdef' * 4}\n"
        f"disks:\n- name: disk0\n  size: 10G\n"
        f"nics:\n- name: net0\n  network: default\n  mac: '52:54:00:12:34:56'\n  address: 10.83.0.10\n"
        "seed: true\nstop_timeout: 90s\n"
    )


def test_text_that_yaml_reads_as_another_type_is_quoted() -> None:
    text = dump.dump_vm(vm(cpu="486", user="no", machine="7.2"))
    assert "cpu: '486'\n" in text
    assert "user: 'no'\n" in text
    assert "machine: '7.2'\n" in text


def test_text_that_is_not_unicode_is_refused_when_written() -> None:
    # as a shell hands over bytes that are not UTF-8
    with pytest.raises(InvalidError, match="UTF-8"):
        dump.dump({"name": "web1", "append": "quiet \udcff"})


@pytest.mark.parametrize(
    "changes",
    [{"ssh_keys": tuple(f"ssh-ed25519 {'A' * 68} {n}" for n in range(900))}, {"qemu_args": ("- " * 10_001,)}],
)
def test_a_spec_that_could_not_be_read_again_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="too long for a definition"):
        dump.dump_vm(vm(**changes))


# networks


def test_a_network_is_read_and_written() -> None:
    spec = load.parse_network("name: lan\nkind: nat\nsubnet: 10.9.0.0/24", "lan.yaml", name="lan")
    assert spec == NetworkSpec(name="lan", kind=NetworkKind.NAT, subnet="10.9.0.0/24")
    assert load.parse_network(dump.dump_network(spec), "lan.yaml") == spec
    spec = load.parse_network("name: lan\nsubnet: 10.9.0.0/24\nhost_access: true", "lan.yaml", name="lan")
    assert spec.host_access
    assert load.parse_network(dump.dump_network(spec), "lan.yaml") == spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: lan", "the key 'subnet' is missing"),
        ("name: lan\nsubnet: 10.9.0.1/24", "is not an IPv4 subnet"),
        ("name: lan\nsubnet: 10.9.0.0/29", "has no usable size"),
        ("name: lan\nsubnet: 10.0.0.0/8", "has no usable size"),
        ("name: lan\nsubnet: fd00::/64", "is not an IPv4 subnet"),
        ("name: lan\nsubnet: 10.9.0.0/24\nkind: vpn", "'vpn' is not one of nat"),
        ("name: lan\nsubnet: 10.9.0.0/24\nmtu: 9000", "unknown key 'mtu'"),
        ("name: lan\nsubnet: 10.9.0.0/24\nhost_access: yes", "host_access"),
        ("name: wan\nsubnet: 10.9.0.0/24", "'wan' is not the file's name, 'lan'"),
    ],
)
def test_invalid_networks_are_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidError, match=r"lan\.yaml:\d+: ") as caught:
        load.parse_network(text, "lan.yaml", name="lan")
    assert words in caught.value.message


# plain values


def test_plain_values_are_those_of_the_definition() -> None:
    text = (
        "name: web1\nimage: debian\ncpus: 2\nmemory: 512M\nstop_timeout: 90\nseed: true\nuser:\n"
        "nics:\n- {mac: 52:54:00:12:34:56, address: 10.0.0.5}\nqemu_args: ['1', '0123', 'null']\n"
    )
    assert load.load_plain(text, "web1.yaml") == {
        "name": "web1",
        "image": "debian",
        "cpus": 2,
        "memory": "512M",
        "stop_timeout": 90,
        "seed": True,
        "user": None,
        "nics": [{"mac": "52:54:00:12:34:56", "address": "10.0.0.5"}],
        "qemu_args": ["1", "0123", "null"],
    }


@pytest.mark.parametrize(
    "text",
    ["a: 2024-13-45", "a: 2024-01-01", "? [a]\n: b", "a: !foo x", "a: !!set {x}", "a: &a [*a]", "a: .nan"],
)
def test_plain_values_can_be_written_as_json_or_are_refused(text: str) -> None:
    try:
        json.dumps(load.load_plain(text, "web1.yaml"), allow_nan=False)
    except InvalidError as error:
        assert error.message.startswith("web1.yaml")

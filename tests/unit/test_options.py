"""Option lists of the command line: --disk and --nic."""

from __future__ import annotations

import pytest

from qsysd.config import load, options
from qsysd.errors import InvalidError
from qsysd.model.disk import Disk
from qsysd.model.field import keys
from qsysd.model.nic import Nic

MAC = "52:54:00:12:34:56"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20G", {"size": "20G"}),
        ("20", {"size": "20"}),
        ("size=20G", {"size": "20G"}),
        ("20G,name=data", {"size": "20G", "name": "data"}),
        ("name=data,size=20G", {"name": "data", "size": "20G"}),
    ],
)
def test_a_disk_is_described_by_its_size_or_by_keys(text: str, expected: dict[str, str]) -> None:
    assert options.disk(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lan", {"network": "lan"}),
        (f"network=lan,mac={MAC}", {"network": "lan", "mac": MAC}),
        ("lan,address=10.0.0.5,name=front", {"network": "lan", "address": "10.0.0.5", "name": "front"}),
        (f"mac={MAC}", {"mac": MAC}),
    ],
)
def test_a_nic_is_described_by_its_network_or_by_keys(text: str, expected: dict[str, str]) -> None:
    assert options.nic(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--disk: '' is not KEY=VALUE"),
        (",", "--disk: '' is not KEY=VALUE"),
        ("20G,", "--disk: '' is not KEY=VALUE"),
        ("20G,,name=a", "--disk: '' is not KEY=VALUE"),
        ("name=a,20G", "--disk: '20G' is not KEY=VALUE"),
        ("20G,5G", "--disk: '5G' is not KEY=VALUE"),
        ("sise=20G", "--disk: unknown key 'sise'; did you mean 'size'?"),
        ("20G,bus=scsi", "--disk: unknown key 'bus'"),
        ("=20G", "--disk: unknown key ''"),
        ("size=1G,size=2G", "--disk: duplicate key 'size'"),
        ("1G,size=2G", "--disk: duplicate key 'size'"),
        ("size=", "--disk: 'size' has no value"),
    ],
)
def test_an_option_list_that_is_not_valid_names_the_known_keys(text: str, message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        options.disk(text)
    assert caught.value.message == message
    assert caught.value.hint == f"keys of --disk: {', '.join(keys(Disk))}"


def test_what_option_lists_describe_is_checked_with_the_definition() -> None:
    document = {
        "name": "web1",
        "disks": [options.disk("20G"), options.disk("name=data,size=5")],
        "nics": [options.nic(f"lan,mac={MAC.upper()}"), options.nic("address=10.0.0.5")],
    }
    spec = load.parse_vm(document, "")
    assert spec.disks == (Disk("disk0", 20 * 1024**3), Disk("data", 5 * 1024**3))
    assert spec.nics == (Nic("net0", "lan", MAC), Nic("net1", "default", "", "10.0.0.5"))


def test_values_that_are_not_valid_are_reported_at_once_with_their_paths() -> None:
    document = {
        "name": "web1",
        "disks": [options.disk("20X"), options.disk("name=no such")],
        "nics": [options.nic("network=Lan,mac=1")],
    }
    with pytest.raises(InvalidError) as caught:
        load.parse_vm(document, "")
    assert [line.partition(": ")[0] for line in caught.value.message.splitlines()] == [
        "disks[0].size",
        "disks[1].name",
        "nics[0].mac",
        "nics[0].network",
    ]

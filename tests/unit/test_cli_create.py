"""`create`: its options make a definition, and one operation is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_host import COMMANDS, Run, listed
from samples import KEY

from qsysd.cli import create as create_verb
from qsysd.cli.definition import take_document
from qsysd.config import load
from qsysd.errors import InvalidError, TimeoutExpired
from qsysd.host.context import Host
from qsysd.model.boot import Kernel
from qsysd.model.disk import Disk
from qsysd.model.nic import Nic
from qsysd.model.vm import Accel, VMSpec
from qsysd.operations import create

pytest_plugins = ("cli_fixtures",)


def definition(*words: str) -> VMSpec:
    """Return the spec that a command line of `create` amounts to."""
    context = COMMANDS["create"].make_context("create", list(words), resilient_parsing=False)
    text, source = create_verb.definition(
        context.params["name"], context.params["file"], take_document(context.params)
    )
    return load.parse_vm(text, source)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--memory 512M", "memory_mib", 512),
        ("--memory 512", "memory_mib", 512),
        ("--cpus 3", "cpus", 3),
        ("--vcpus 3", "cpus", 3),
        ("--cpu host,-vmx", "cpu", "host,-vmx"),
        ("--cpu 486", "cpu", "486"),
        ("--accel tcg", "accel", Accel.TCG),
        ("--machine pc-q35-7.2", "machine", "pc-q35-7.2"),
        ("--disk 20G", "disks", (Disk("disk0", 20 * 1024**3),)),
        ("--disk 20 --disk 5G", "disks", (Disk("disk0", 20 * 1024**3), Disk("disk1", 5 * 1024**3))),
        ("--network lan", "nics", (Nic("net0", "lan", ""),)),
        ("--network lan --network dmz", "nics", (Nic("net0", "lan", ""), Nic("net1", "dmz", ""))),
        ("--network none", "nics", ()),
        ("--disk size=20G", "disks", (Disk("disk0", 20 * 1024**3),)),
        (
            "--disk 20G --disk size=5G,name=data",
            "disks",
            (Disk("disk0", 20 * 1024**3), Disk("data", 5 * 1024**3)),
        ),
        ("--nic lan", "nics", (Nic("net0", "lan", ""),)),
        (
            "--nic network=lan,mac=52:54:00:12:34:56,address=10.83.0.50",
            "nics",
            (Nic("net0", "lan", "52:54:00:12:34:56", "10.83.0.50"),),
        ),
        ("--nic dmz --network lan", "nics", (Nic("net0", "lan", ""), Nic("net1", "dmz", ""))),
        ("--user no", "user", "no"),
        ("--depends-on db1 --depends-on db2", "depends_on", ("db1", "db2")),
        ("--stop-timeout 5min", "stop_timeout", 300),
        ("--stop-timeout 90", "stop_timeout", 90),
        ("--qemu-arg -device --qemu-arg usb-ehci,id=u", "qemu_args", ("-device", "usb-ehci,id=u")),
        ("--qemu-arg=--0123", "qemu_args", ("--0123",)),
        ("--qemu-arg 0123", "qemu_args", ("0123",)),
        ("--kernel /boot/vmlinuz", "kernel", Kernel("/boot/vmlinuz")),
    ],
)
def test_an_option_of_create_sets_its_field(words: str, field: str, value: object) -> None:
    spec = definition("web3", "--image", "tiny", *words.split())
    assert getattr(spec, field) == value
    assert (spec.name, spec.image) == ("web3", "tiny")


def test_a_kernel_command_line_is_not_changed() -> None:
    append = "console=ttyS0 init=\"/bin/sh -c 'x'\" a,b $HOME % #c: \\"
    spec = definition("web3", "--kernel", "/k", "--initrd", "/i", "--append", append)
    assert spec.kernel == Kernel("/k", "/i", append)
    # as typed it is a text, whatever YAML takes it for
    for odd in ("no", "0123", "12:30", "", "~", "{}", "- x"):
        assert definition("web3", "--kernel", "/k", "--append", odd).kernel == Kernel("/k", None, odd)


def test_a_value_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidError, match="not UTF-8"):
        definition("web3", "--kernel", "/k", "--append", "quiet \udcff")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what `create` was called with; it creates nothing."""
    found: list[dict[str, Any]] = []

    def call(host: Host, definition: str, source: str, **options: Any) -> create.Created:
        spec = load.parse_vm(definition, source)
        found.append({"spec": spec, "source": source, **options})
        if options["wait"]:
            host.progress(f"{spec.name}: running at 10.83.0.10")
        if options["wait"] and options["wait_timeout"] < 10:
            raise TimeoutExpired(f"{spec.name} runs, but did not answer")
        return create.Created(listed(name=spec.name), "10.83.0.10", 4.2 if options["wait"] else None)

    monkeypatch.setattr(create, "create", call)
    return found


def test_create_prints_name_state_and_address(qsysd_command: Run, made: list[dict[str, Any]]) -> None:
    result = qsysd_command("create", "web3", "--image", "tiny")
    assert (result.exit_code, result.output) == (0, "web3: running at 10.83.0.10\n")
    assert made[0]["start"] is made[0]["enable"] is True
    assert made[0]["ssh_keys"] == []
    result = qsysd_command("create", "web3", "--image", "tiny", "--no-start", "--no-enable")
    assert result.output == "web3: created at 10.83.0.10\n"
    assert made[1]["start"] is made[1]["enable"] is False


def test_create_reads_ssh_keys_from_files(
    qsysd_command: Run, made: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "x.pub").write_text(f"{KEY}\n", encoding="utf-8")
    qsysd_command("create", "web3", "--image", "tiny", "--ssh-key", str(tmp_path / "x.pub"))
    assert made[0]["ssh_keys"] == [KEY]
    (tmp_path / "x.pub").write_text("nothing", encoding="utf-8")
    assert isinstance(
        qsysd_command("create", "web3", "--image", "tiny", "--ssh-key", str(tmp_path / "x.pub")).exception,
        InvalidError,
    )
    assert len(made) == 1


def test_create_reads_a_definition_from_a_file_or_standard_input(
    qsysd_command: Run, made: list[dict[str, Any]], tmp_path: Path
) -> None:
    text = "name: web3\nimage: tiny\nmemory: 2G\n"
    (tmp_path / "web3.yaml").write_text(text, encoding="utf-8")
    qsysd_command("create", "--file", str(tmp_path / "web3.yaml"))
    qsysd_command("create", "-f", "-", stdin=text)
    assert [call["spec"].memory_mib for call in made] == [2048, 2048]
    assert [call["source"] for call in made] == [str(tmp_path / "web3.yaml"), "<stdin>"]


@pytest.mark.parametrize("words", ["web3", "--memory 1G", "--disk 1G", "--depends-on x", "--network none"])
def test_a_file_excludes_options_of_the_definition(
    qsysd_command: Run, made: list[dict[str, Any]], words: str
) -> None:
    result = qsysd_command("create", "-f", "-", *words.split(), stdin="name: web3\nimage: tiny\n")
    assert isinstance(result.exception, InvalidError)
    assert made == []


def test_create_with_wait_prints_each_line_once(qsysd_command: Run, made: list[dict[str, Any]]) -> None:
    result = qsysd_command("create", "web3", "--image", "tiny", "--wait")
    assert result.output == "web3: running at 10.83.0.10\nweb3: answers on SSH after 4 s; qsysd ssh web3\n"
    result = qsysd_command("create", "web3", "--image", "tiny", "--wait", "--json")
    progress, document = result.output.split("\n", 1)
    assert (progress, json.loads(document)["name"]) == ("web3: running at 10.83.0.10", "web3")


def test_create_prints_the_address_before_a_wait_that_fails(
    qsysd_command: Run, made: list[dict[str, Any]]
) -> None:
    result = qsysd_command("create", "web3", "--image", "tiny", "--wait", "--wait-timeout", "5")
    assert isinstance(result.exception, TimeoutExpired)
    assert result.output == "web3: running at 10.83.0.10\n"
    assert made[0]["wait_timeout"] == 5.0

"""The verbs: options in, one operation called, text or JSON out."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from cli_host import DONE, OwnHost, Run, listed
from samples import vm

from qsysd.cli import main
from qsysd.cli.outcomes import STATE_TEXTS
from qsysd.cli.output import print_table
from qsysd.errors import (
    HostError,
    InvalidError,
    NotFoundError,
    TimeoutExpired,
)
from qsysd.host import guest_ssh, selection, unit_states
from qsysd.host.context import Host
from qsysd.host.outcomes import Outcome, State, failed
from qsysd.operations import delete, doctor, edit, guest, image, power, setup
from qsysd.operations.setup import Action, SetUp, Step

pytest_plugins = ("cli_fixtures",)

# one shape: verbs on VMs


@pytest.mark.parametrize("verb", DONE)
def test_a_verb_handles_each_vm_once(qsysd_command: Run, calls: list[Any], verb: str) -> None:
    result = qsysd_command(verb, "web2", "web1", "web2")
    assert result.exit_code == 0
    assert calls == [(verb, ["web2", "web1"])]
    assert result.output == f"web2: {DONE[verb]}\nweb1: {DONE[verb]}\n"


def test_all_means_every_vm_also_without_any(qsysd_command: Run, calls: list[Any], host: OwnHost) -> None:
    assert qsysd_command("stop", "--all").exit_code == 0
    assert calls == [("stop", ["web1", "web2"])]
    for name in host.store.names():
        os.unlink(host.scope.definition(name))
    assert qsysd_command("stop", "--all").exit_code == 0


def test_outcomes_are_printed_for_all_vms_when_one_fails(
    qsysd_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout = TimeoutExpired("web1: not started", hint="qsysd logs web1")
    last = HostError("web3: no bridge")
    results = [failed("web1", timeout), Outcome("web2", State.STARTED), failed("web3", last)]
    monkeypatch.setattr(power, "start", lambda host, names: results)
    result = qsysd_command("start", "web1", "web2", "web3")
    # that of the first error
    assert result.exit_code == TimeoutExpired.code
    assert "web2: started\n" in result.output
    assert "error: web1: not started\nhint: qsysd logs web1\n" in result.output
    assert "error: web3: no bridge\n" in result.output


def test_each_state_of_an_outcome_has_a_text() -> None:
    assert set(STATE_TEXTS) == set(State) - {State.FAILED}


# delete and image rm: named first, and asked


@pytest.fixture
def deleted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return what `delete` was called with; it deletes nothing."""
    found: list[list[str]] = []

    def contents(host: Host, name: str) -> delete.Contents:
        host.store.require(name)
        disk = delete.Item(f"/{name}/disk0.qcow2", delete.Kind.FILE, 1024**2)
        return delete.Contents(name, f"{name}.service", True, f"/{name}.yaml", True, "/d", [disk], 0, ["db"])

    def call(host: Host, names: Sequence[str] | None, *, dry_run: bool = False) -> delete.Deleted:
        vms = selection.resolve(host, names)
        if dry_run:
            return delete.Deleted(contents=[contents(host, name) for name in vms])
        found.append(vms)
        kept = ["/etc/systemd/system/qemu-vm@web1.service.d/60-mine.conf"]
        return delete.Deleted(deleted=vms, kept=kept)

    monkeypatch.setattr(delete, "delete", call)
    return found


def test_delete_lists_contents_and_fails_without_a_terminal(
    qsysd_command: Run, deleted: list[list[str]]
) -> None:
    result = qsysd_command("delete", "web1", stdin="y\n")
    assert isinstance(result.exception, InvalidError)
    assert result.exception.hint == "--yes answers it without a terminal"
    assert result.output.startswith(
        "web1: this will be removed:\n"
        "  web1.service runs: it is switched off, without a shutdown of the guest\n"
        "  db depends on it, and will start without it\n"
        "  /web1.yaml and what was rendered from it\n"
        "  /web1/disk0.qcow2 (1.0 MiB)\n"
    )
    assert deleted == []


@pytest.mark.parametrize("answer", ["y", "n", "", "maybe"])
def test_delete_asks_for_confirmation_on_a_terminal(
    qsysd_command: Run, deleted: list[list[str]], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("qsysd.cli.common.is_terminal", lambda: True)
    result = qsysd_command("delete", "web1", "web2", stdin=f"{answer}\n")
    assert "Remove them? [y/N]" in result.output
    assert deleted == ([["web1", "web2"]] if answer == "y" else [])
    if answer == "n":
        assert result.exit_code == 1
        assert result.output.endswith("nothing was done\n")
    assert (result.exit_code == 0) is (answer == "y")


def test_delete_with_yes_does_not_ask(qsysd_command: Run, deleted: list[list[str]]) -> None:
    result = qsysd_command("delete", "web1", "-y")
    assert result.exit_code == 0
    assert deleted == [["web1"]]
    assert "web1: deleted\n" in result.output
    assert (
        "/etc/systemd/system/qemu-vm@web1.service.d/60-mine.conf was not written by qsysd and is kept\n"
        in result.output
    )


def test_a_dry_run_deletes_nothing(qsysd_command: Run, deleted: list[list[str]]) -> None:
    result = qsysd_command("delete", "--all", "--dry-run", "--yes")
    assert result.exit_code == 0
    assert "web2: this will be removed:" in result.output
    assert deleted == []


def test_nothing_is_deleted_if_one_name_is_unknown(qsysd_command: Run, deleted: list[list[str]]) -> None:
    result = qsysd_command("delete", "web1", "web3", "--yes")
    assert isinstance(result.exception, NotFoundError)
    assert deleted == []
    # nor is any removal announced
    assert result.output == ""


@pytest.mark.parametrize("name", ["../networks/default", "/etc", "web1/../web2", "web*", "", "."])
def test_delete_refuses_paths_and_patterns(
    qsysd_command: Run, deleted: list[list[str]], host: OwnHost, name: str
) -> None:
    Path(host.scope.network_definition("default")).touch()
    result = qsysd_command("delete", "--yes", "--", name)
    assert isinstance(result.exception, NotFoundError)
    assert deleted == []


def test_image_rm_asks_for_confirmation(
    qsysd_command: Run, host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Sequence[str]] = []

    def call(host: Host, names: Sequence[str], *, dry_run: bool = False) -> image.Removed:
        if not dry_run:
            removed.append(names)
        return image.Removed([host.scope.image(name) for name in names])

    monkeypatch.setattr(image, "remove", call)
    Path(host.scope.image("tiny")).touch()
    assert isinstance(qsysd_command("image", "rm", "tiny").exception, InvalidError)
    assert "would be removed" in qsysd_command("image", "rm", "tiny", "--dry-run").output
    assert removed == []
    assert qsysd_command("image", "rm", "tiny", "tiny", "--yes").output.endswith("tiny: removed\n")
    assert removed == [["tiny"]]


# edit and render


def test_edit_reads_a_file_and_reports_a_pending_restart(
    qsysd_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited: list[str] = []

    def call(host: Host, name: str, text: str, *, before: str) -> edit.Edited:
        edited.append(text)
        return edit.Edited(name, restart="4" in text)

    monkeypatch.setattr(edit, "edit", call)
    assert qsysd_command("edit", "web1", "-f", "-", stdin="cpus: 4").output == (
        "web1: changed; takes effect after: qsysd restart web1\n"
    )
    assert qsysd_command("edit", "web1", "-f", "-", stdin="cpus: 2").output == "web1: changed\n"
    assert edited == ["cpus: 4", "cpus: 2"]


def test_render_check_exits_with_1_if_a_file_differs(qsysd_command: Run, rendered: OwnHost) -> None:
    host = rendered
    assert qsysd_command("render", "--check").exit_code == 0
    Path(host.scope.environment("web2")).write_text("", encoding="utf-8")
    result = qsysd_command("render", "--check")
    assert result.exit_code == 1
    assert result.output == f"web2: {host.scope.environment('web2')} differs from its definition\n"
    result = qsysd_command("render", "--check", "--json")
    assert json.loads(result.output) == {"web1": [], "web2": [host.scope.environment("web2")]}
    assert qsysd_command("render", "--check", "web1").exit_code == 0
    # a check writes nothing
    assert Path(host.scope.environment("web2")).read_text(encoding="utf-8") == ""


# what shows something


def test_list_prints_a_table_and_json(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    off = listed(name="database-of-web1", active="activating", sub="auto-restart", guest=None, pid=None,
    ip=None, enabled=False,
                 image=None, memory_mib=None, cpus=None)  # fmt: skip
    monkeypatch.setattr("qsysd.operations.list.list_vms", lambda host, names: [listed(), off])
    assert qsysd_command("list").output == (
        "NAME              STATE                      GUEST    BOOT      IP          IMAGE   MEMORY   CPUS\n"
        "web1              active                     running  enabled   10.83.0.10  debian  512 MiB  2\n"
        "database-of-web1  activating (auto-restart)  -        disabled  -           -       -        -\n"
    )
    keys = {"name", "unit", "active", "sub", "guest", "enabled", "pid", "ip", "image"}
    keys |= {"memory_mib", "cpus", "pending_memory_mib", "pending_cpus", "problem"}
    assert [set(each) for each in json.loads(qsysd_command("list", "--json").output)] == [keys, keys]


@pytest.mark.parametrize(
    ("variables", "terminal", "colour"),
    [
        ({}, True, True),
        ({"NO_COLOR": ""}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({}, False, False),
    ],
)
def test_states_are_coloured_and_counted_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, colour: bool
) -> None:
    failed = listed(name="web2", active="failed", sub="failed", guest=None, pid=None)
    monkeypatch.setattr("qsysd.operations.list.list_vms", lambda host, names: [listed(), failed])
    pages = {"SC_PHYS_PAGES": 24 * 1024**3 // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **variables}.items():
        monkeypatch.setenv(name, value)
    output = io.StringIO()
    monkeypatch.setattr(output, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["qsysd", "list"])
    assert main.run() == 0
    shown = output.getvalue()
    assert ("\x1b[32mactive\x1b[0m  \x1b[32mrunning\x1b[0m" in shown) is colour
    assert ("\x1b[31mfailed\x1b[0m" in shown) is colour
    assert ("\x1b" in shown) is colour
    assert shown.endswith("\n2 VMs, 1 running, 512 MiB of 24 GiB memory\n") is terminal
    # the same width with colours and without
    assert [len(line) for line in click.unstyle(shown).splitlines()[:3]] == [65, 62, 62]


def test_list_without_vms_prints_a_hint(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsysd.operations.list.list_vms", lambda host, names: [])
    assert "no VMs; create one" in qsysd_command("list").output
    assert json.loads(qsysd_command("list", "--json").output) == []


def test_show_prints_the_definition_unchanged(qsysd_command: Run, host: OwnHost) -> None:
    path = Path(host.scope.definition("web1"))
    path.write_text("# mine\nname: web1\nimage: debian\ncpus: 2", encoding="utf-8")
    assert qsysd_command("show", "web1").output == "# mine\nname: web1\nimage: debian\ncpus: 2"
    assert json.loads(qsysd_command("show", "web1", "--json").output) == {
        "name": "web1",
        "image": "debian",
        "cpus": 2,
    }


@pytest.mark.usefixtures("rendered")
def test_ip_prints_the_address(qsysd_command: Run) -> None:
    assert qsysd_command("ip", "web1").output == "10.83.0.10\n"
    assert json.loads(qsysd_command("ip", "web1", "--json").output) == {
        "name": "web1",
        "addresses": ["10.83.0.10"],
    }
    assert isinstance(qsysd_command("ip", "web3").exception, NotFoundError)


def test_doctor_prints_findings_and_exits_with_7_if_something_is_missing(
    qsysd_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        doctor.Finding(doctor.Level.OK, "QEMU", "7.2"),
        doctor.Finding(doctor.Level.WARNING, "KVM", "none", "switch it on"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda host: findings)
    result = qsysd_command("doctor")
    assert result.exit_code == 0
    assert result.output == "     ok  QEMU: 7.2\nwarning  KVM: none\n         → switch it on\n"
    findings.append(doctor.Finding(doctor.Level.MISSING, "nft", "is not installed", "apt install nftables"))
    result = qsysd_command("doctor", "--json")
    assert result.exit_code == 7
    assert json.loads(result.output)[2]["remedy"] == "apt install nftables"


def test_setup_prints_its_steps(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "setup", lambda host: SetUp([Step(Action.INSTALLED_UNIT, "x")], ["web1"]))
    assert qsysd_command("setup").output == "installed x\nto apply: qsysd restart web1\n"
    monkeypatch.setattr(setup, "setup", lambda host: SetUp([], []))
    assert qsysd_command("setup").output == "this host is ready\n"


def test_a_column_is_as_wide_as_its_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "LONG HEAD"), [("x", "y"), ("wide cell", "")])
    assert capsys.readouterr().out == "A          LONG HEAD\nx          y\nwide cell\n"


# ssh


@pytest.mark.usefixtures("rendered")
def test_ssh_passes_the_command_and_its_status(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    waited: list[str] = []
    monkeypatch.setattr(unit_states, "require_running", lambda host, name: 4711)
    monkeypatch.setattr(guest_ssh, "wait_once", lambda host, name: waited.append(name))
    monkeypatch.setattr("qsysd.process.foreground", lambda argv: ran.append(list(argv)) or 42)  # type: ignore[func-returns-value]
    result = qsysd_command("ssh", "web1", "--", "ls", "-l", "--user", "x y")
    assert result.exit_code == 42
    assert ran[0][-5:] == ["--", "ls", "-l", "--user", "x y"]
    assert ran[0][-8:-5] == ["-l", "debian", "10.83.0.10"]
    qsysd_command("ssh", "web1", "-l", "root")
    assert ran[1][-3:] == ["-l", "root", "10.83.0.10"]
    assert waited == ["web1", "web1"]
    assert any(word.startswith("ConnectTimeout=") for word in ran[0])


def test_ssh_accepts_a_host_key_once_per_vm(rendered: OwnHost) -> None:
    command_line = guest._ssh_command(rendered, vm(), None, [])
    options = [word for word, before in zip(command_line[1:], command_line, strict=False) if before == "-o"]
    assert f"HostKeyAlias=qsysd-{vm().uuid}" in options
    assert "StrictHostKeyChecking=accept-new" in options

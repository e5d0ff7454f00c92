"""The logs of units and consoles: their ends, and what comes after, across a restart of the VM."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from own_host import OwnHost
from stand_ins import StandIns

from qsysd.cli.main import command
from qsysd.errors import QsysdError
from qsysd.host import console_log
from qsysd.host.console_log import ConsoleLog
from qsysd.operations import create, logs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the path of a console's log that does not exist yet."""
    return tmp_path / "console.log"


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_console_is_followed_from_the_end_of_its_tail(log: Path) -> None:
    console = ConsoleLog(str(log))
    assert console.tail(2) == []
    assert console.new_lines() == []
    append(log, "one\ntwo\nthree\n")
    assert ConsoleLog(str(log)).tail(2) == ["two", "three"]
    assert console.tail(1) == ["three"]
    assert console.new_lines() == []
    append(log, "four\nfi")
    assert console.new_lines() == ["four"]
    append(log, "ve\n\x1b[2Jsix\n")
    assert console.new_lines() == ["five", "six"]


def test_a_console_is_followed_when_it_is_trimmed_and_when_it_is_replaced(log: Path) -> None:
    append(log, "one\ntwo\nthree\n")
    console = ConsoleLog(str(log))
    console.tail(10)
    # as qsysd-trim.service does: in place, to its last part
    log.write_text("three\n", encoding="utf-8")
    assert console.new_lines() == []
    append(log, "four\n")
    assert console.new_lines() == ["four"]
    # as a VM that was deleted and created again
    (log.parent / "new").write_text("first\n", encoding="utf-8")
    os.rename(log.parent / "new", log)
    assert console.new_lines() == ["first"]
    log.unlink()
    assert console.new_lines() == []


def test_a_console_without_line_breaks_is_shown_in_pieces(log: Path) -> None:
    console = ConsoleLog(str(log))
    append(log, "x" * (console_log.LINE_MAX + 1))
    assert console.new_lines() == ["x" * (console_log.LINE_MAX + 1)]
    append(log, "y\n")
    assert console.new_lines() == ["y"]


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_only_a_regular_file_is_followed(log: Path, plant: Callable[[str], None]) -> None:
    plant(str(log))
    with pytest.raises(QsysdError, match=r"console\.log"):
        ConsoleLog(str(log)).new_lines()


JOURNALCTL = """
case "$*" in
*-f*web1*) echo "crashed"; echo "restarted"; exec sleep 60;;
*-f*) echo "other"; exec sleep 60;;
*) echo "started"; echo "-- cursor: s=12;i=34";;
esac
"""


@pytest.fixture
def vms(host: OwnHost, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Return a host with the VMs web1 and web2, whose units have a journal that goes on."""
    for name in ("web1", "web2"):
        text = f"name: {name}\nimage: tiny\ndisks: [{{}}]\nseed: false\n"
        create.create(host, text, "x", start=False, enable=False)
        append(Path(host.scope.console_log(name)), f"login of {name}\n")
    stand_ins.add("journalctl", JOURNALCTL)
    stand_ins.add("setpriv", 'shift 3; exec "$@"')
    monkeypatch.setattr("qsysd.cli.logs.make_host", lambda: host)
    return host


def run(*words: str) -> Result:
    return CliRunner().invoke(command, ["logs", *words], prog_name="qsysd", catch_exceptions=False)


@pytest.mark.usefixtures("vms")
def test_logs_of_several_vms_have_titles() -> None:
    assert run("web1", "web2").output == (
        "── web1: unit and QEMU (journalctl -u qemu-vm@web1) ──\nstarted\n"
        "── web1: the guest's console ──\nlogin of web1\n"
        "── web2: unit and QEMU (journalctl -u qemu-vm@web2) ──\nstarted\n"
        "── web2: the guest's console ──\nlogin of web2\n"
    )
    assert run("web1", "--console").output == "login of web1\n"
    assert run("web1", "--unit").output == "started\n"


def test_a_console_that_cannot_be_read_hides_no_other_log(vms: OwnHost) -> None:
    log = Path(vms.scope.console_log("web1"))
    log.unlink()
    log.symlink_to("/etc/passwd")
    result = run("web1", "web2", "--follow")
    assert "started\n── web2: unit" in result.output
    assert "login of web2\n" in result.output
    assert f"error: {log} cannot be read" in result.output
    assert result.exit_code == 1


def test_logs_follow_unit_and_console_together(vms: OwnHost, stand_ins: StandIns) -> None:
    first, second = logs.tail(vms, ["web1", "web2"], lines=5)
    assert (first.unit, first.cursor, first.console) == ("started\n", "s=12;i=34", ["login of web1"])
    for name in ("web1", "web2"):
        append(Path(vms.scope.console_log(name)), f"{name} boots\n")
    followed = logs.follow(vms, [first, replace(second, cursor="")])
    seen = {next(followed) for _ in range(5)}
    assert seen == {
        ("web1", "crashed"),
        ("web1", "restarted"),
        ("web2", "other"),
        ("web1", "web1 boots"),
        ("web2", "web2 boots"),
    }
    append(Path(vms.scope.console_log("web1")), "booting again\n")
    assert next(followed) == ("web1", "booting again")
    followed.close()  # type: ignore[attr-defined]
    following = [words for words in stand_ins.calls("journalctl") if "-f" in words]
    assert sorted("--after-cursor" in words for words in following) == [False, True]

"""Programs: their input, environment, errors and deadlines."""

from __future__ import annotations

import pytest
from stand_ins import StandIns

from qsysd.errors import HostError, QsysdError
from qsysd.runtime import spawn


def test_a_program_that_is_missing_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "SYSTEM_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="dhcp_release is not installed") as caught:
        spawn.run(["dhcp_release"])
    assert caught.value.hint == "apt install dnsmasq-utils"


def test_programs_get_a_closed_input_and_plain_english(stand_ins: StandIns) -> None:
    stand_ins.add("tool", 'cat; echo "$LANG $LC_ALL"')
    assert spawn.run(["tool"]).stdout == "C.UTF-8 C.UTF-8\n"
    assert spawn.run(["tool"], stdin="fed\n").stdout == "fed\nC.UTF-8 C.UTF-8\n"


def test_arguments_reach_a_program_as_they_are(stand_ins: StandIns) -> None:
    stand_ins.add("tool")
    arguments = ["", " ", "a b", "$HOME", "`id`", "*", "'", '"', "\\", "-x", "é", "a\nb"]
    spawn.run(["tool", *arguments])
    assert stand_ins.calls("tool") == [arguments]


def test_a_program_gets_the_signals_that_python_ignores() -> None:
    # Inherited as ignored, SIGPIPE would keep a program writing into a pipe without a reader.
    assert spawn.run(["sh", "-c", "kill -PIPE $$; echo ignored"], check=False).returncode == -13


def test_a_failed_program_is_quoted_by_its_last_words(stand_ins: StandIns) -> None:
    stand_ins.add("tool", "echo out; printf 'first\\n\\nlast words\\n\\n' >&2; exit 3")
    with pytest.raises(spawn.CommandError, match=r"^tool failed: last words$") as caught:
        spawn.run(["tool", "-x"])
    assert (caught.value.returncode, caught.value.argv) == (3, ["tool", "-x"])
    stand_ins.add("tool", "exit 4")
    with pytest.raises(spawn.CommandError, match="exit status 4"):
        spawn.run(["tool"])


def test_a_program_that_hangs_is_ended(stand_ins: StandIns) -> None:
    stand_ins.add("tool", "exec sleep 1000")
    with pytest.raises(QsysdError, match=r"tool did not end within 0\.1 s"):
        spawn.run(["tool"], timeout=0.1)


def test_under_debugging_a_command_can_be_copied(
    stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_ins.add("tool")
    monkeypatch.setenv("QSYSD_DEBUG", "1")
    spawn.run(["tool", "a b", "$x"])
    assert capfd.readouterr().err == f"+ {stand_ins.directory}/tool 'a b' '$x'\n"

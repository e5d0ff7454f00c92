"""Why a start failed, from the journal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from own_host import OwnHost
from stand_ins import StandIns

from qsysd.host import journal


@pytest.fixture
def unit(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the properties that a VM's unit has after a start that failed."""
    properties: dict[str, Any] = {"Result": "exit-code", "AssertResult": True, "InvocationID": [1, 255]}

    def read(unit: str) -> Mapping[str, Any]:
        return properties

    monkeypatch.setattr(host.fake, "properties", read)
    return properties


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["qemu-system-x86_64: -foo: invalid option"],
         "qemu-system-x86_64: -foo: invalid option"),
        (["qemu-system-x86_64: warning: TCG doesn't support",
        "qemu-system-x86_64: -drive: Could not open 'x'", "noise"],
         "qemu-system-x86_64: -drive: Could not open 'x'"),
        (["network default: its bridge qb-default does not exist (systemctl restart …)"],
         "network default: its bridge qb-default does not exist (systemctl restart …)"),
        (["", "  ", "one", "two", "three", "four"], "two\nthree\nfour"),
        (["qemu-system-x86_64: \x1b[2J\x1b]0;x\x07no\x9b"], "qemu-system-x86_64: no"),
        ([], ""),
    ],
)  # fmt: skip
def test_qemus_own_words_come_first(
    host: OwnHost, unit: dict[str, Any], stand_ins: StandIns, lines: list[str], words: str
) -> None:
    write_journal(stand_ins, [("1", line) for line in lines])
    assert journal.failure(host, "qemu-vm@web1.service") == words
    assert stand_ins.calls("journalctl")[0] == ["--sync"]
    # only of this start, whatever was before
    assert stand_ins.calls("journalctl")[1][-1] == "_SYSTEMD_INVOCATION_ID=01ff"


def write_journal(stand_ins: StandIns, lines: Sequence[tuple[str, str | bytes]]) -> None:
    """Let the journal have lines of processes, in journalctl's JSON: of what is not UTF-8 the bytes."""
    entries = [
        {"_PID": pid, "MESSAGE": text if isinstance(text, str) else list(text), "__CURSOR": "s=1"}
        for pid, text in lines
    ]
    Path("words").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")
    stand_ins.add("journalctl", f'[ "$1" = --sync ] || cat "{os.getcwd()}/words"')


@pytest.mark.usefixtures("unit")
def test_an_error_of_the_first_step_is_not_repeated_by_the_last_one(
    host: OwnHost, stand_ins: StandIns
) -> None:
    first, last = "/x/y is not a plain file", "/x/y is not a plain file; it was not given back to root"
    write_journal(stand_ins, [("11", first), ("12", last), ("12", first)])
    assert journal.failure(host, "qemu-vm@web1.service") == first
    write_journal(stand_ins, [("11", b"no \xff text"), ("12", last)])
    assert journal.failure(host, "qemu-vm@web1.service") == "no \ufffd text"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("Result", "start-limit-hit", "crash loop"),
        ("AssertResult", False, "qsysd render writes it"),
        ("InvocationID", [], ""),
    ],
)
def test_what_systemd_knows_better_than_the_journal(
    host: OwnHost, unit: dict[str, Any], name: str, value: object, words: str
) -> None:
    unit[name] = value
    found = journal.failure(host, "qemu-vm@web1.service")
    assert words in found
    assert bool(words) is bool(found)

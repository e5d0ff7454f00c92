"""SIGKILL at every step of a command: the next one finds a whole VM or nothing, and can always go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import killed

import qsysd


def kill_everywhere(root: Path, verb: str, stride: int = 1) -> list[dict[str, Any]]:
    """Return what each kill of a command came to; the last one was not killed."""
    here = os.path.dirname(killed.__file__)
    environment = {**os.environ, "PYTHONPATH": f"{os.path.dirname(os.path.dirname(qsysd.__file__))}:{here}"}
    done = subprocess.run(
        [sys.executable, killed.__file__, str(root), verb, str(stride)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[-1]["effect"] is None
    assert found[-1]["outcome"] == "after"
    return found


def assert_whole_or_nothing(found: list[dict[str, Any]]) -> None:
    for kill in found:
        assert kill["outcome"] in ("before", "after"), kill
        assert kill["left"] == [], kill


def test_a_killed_create_leaves_nothing(set_up: Path) -> None:
    found = kill_everywhere(set_up, "create")
    assert_whole_or_nothing(found)
    # on the way there were side effects of every sort
    effects = {kill["effect"].split()[0] for kill in found[:-1]}
    assert {"os.mkdir", "open", "os.rename", "os.posix_spawn", "test.systemd", "os.remove"} <= effects
    assert len(found) > 50
    # Once the VM is complete, the command only asks systemd for the VM that it returns.
    complete = [kill["effect"] for kill in found if kill["outcome"] == "after"]
    assert set(complete) <= {"test.systemd ListUnitsByPatterns", "test.systemd Get", None}
    for kill in found:
        active = "active" if kill["outcome"] == "after" else "inactive"
        assert kill["active"] == active, kill


def test_a_killed_delete_is_brought_to_its_end(set_up: Path) -> None:
    found = kill_everywhere(set_up, "delete")
    assert_whole_or_nothing(found)
    # a whole VM while nothing was touched, and nothing from the first note on
    outcomes = [kill["outcome"] for kill in found]
    assert outcomes == sorted(outcomes, reverse=True)
    assert 0 < outcomes.count("before") < 5
    for kill in found:
        assert kill["active"] == ("active" if kill["outcome"] == "before" else "inactive"), kill


def test_after_a_killed_edit_a_start_leaves_all_of_the_old_or_all_of_the_new_definition(set_up: Path) -> None:
    found = kill_everywhere(set_up, "edit")
    assert_whole_or_nothing(found)
    outcomes = [kill["outcome"] for kill in found]
    assert outcomes == sorted(outcomes, reverse=True)
    assert {kill["active"] for kill in found} == {"active"}


def test_a_killed_set_up_can_be_repeated(set_up: Path) -> None:
    assert_whole_or_nothing(kill_everywhere(set_up, "setup", stride=7))

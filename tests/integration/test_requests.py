"""The journal entry of each changing verb, on a real host: operation, VM, user, result, duration, id."""

from __future__ import annotations

import json
import re
from typing import Any

from labtest import LabHost, tiny_options

from tests.integration.conftest import VMFactory
from tests.integration.helpers import FROZEN

PERSON = "alice"


def entries(host: LabHost, name: str) -> list[dict[str, Any]]:
    """Return the entries of requests for a VM, in their order."""
    host.sh("journalctl --sync")
    lines = host.sh(f"journalctl -q -t qsysd -o json QSYSD_VM={name}").splitlines()
    return [json.loads(line) for line in lines]


def by_sudo(host: LabHost, *words: str, status: int = 0) -> None:
    """Run qsysd as a person does, through sudo."""
    done = host.run(["runuser", "-u", PERSON, "--", "sudo", "-n", "qsysd", *words], check=False, timeout=120)
    assert done.returncode == status, done.stderr


def test_what_a_user_of_sudo_changes_is_in_the_journal(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    host.sh(f"id {PERSON} >/dev/null 2>&1 || useradd {PERSON}")
    host.write(f"/etc/sudoers.d/{PERSON}", f"{PERSON} ALL=(ALL) NOPASSWD: ALL\n", mode=0o440)
    by_sudo(host, "create", name, *tiny_options(), *FROZEN)
    by_sudo(host, "stop", name)
    by_sudo(host, "status", name)
    by_sudo(host, "delete", name, "--dry-run")
    by_sudo(host, "delete", name, "--yes")
    host.qsysd("list")
    host.qsysd("start", name, check=False)
    found = entries(host, name)
    assert [(each["QSYSD_OPERATION"], each["QSYSD_RESULT"]) for each in found] == [
        ("vm.create", "done"),
        ("vm.stop", "done"),
        ("vm.delete", "done"),
        ("vm.start", "NotFoundError"),
    ]
    assert [each.get("QSYSD_SUDO_USER") for each in found] == [PERSON, PERSON, PERSON, None]
    for each in found:
        assert (each["QSYSD_UID"], each["_UID"], each["SYSLOG_IDENTIFIER"]) == ("0", "0", "qsysd")
        assert re.fullmatch("[0-9a-f]{16}", each["QSYSD_REQUEST"])
        assert 0 <= float(each["QSYSD_SECONDS"]) < 120
        assert f"request {each['QSYSD_REQUEST']}" in each["MESSAGE"]
    assert len({each["QSYSD_REQUEST"] for each in found}) == len(found)


def test_debug_shows_the_id_that_is_in_the_journal(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    host.qsysd("create", name, *tiny_options(), "--no-start")
    shown = host.qsysd("--debug", "disable", name).stderr
    found = re.search("^request ([0-9a-f]{16}): vm.disable$", shown, re.MULTILINE)
    assert found, shown
    (entry,) = [each for each in entries(host, name) if each["QSYSD_REQUEST"] == found[1]]
    assert entry["QSYSD_OPERATION"] == "vm.disable"


def test_verbs_work_while_the_journal_is_stopped(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    sockets = "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket"
    try:
        host.sh(f"systemctl stop {sockets} systemd-journald.service")
        host.qsysd("create", name, *tiny_options(), "--no-start")
        host.qsysd("delete", name, "--yes")
    finally:
        host.sh(f"systemctl start systemd-journald.service; systemctl start {sockets} || true")

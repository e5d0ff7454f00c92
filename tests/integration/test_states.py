"""docs/states.md, cell by cell: each verb in each state of a VM."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from labtest import LabHost, tiny_options

from tests.integration.conftest import VMFactory
from tests.integration.helpers import FROZEN, active, at_once, listed, main_pid, unit, wait_active, wait_ready

TABLE = Path(__file__).parents[2] / "docs" / "states.md"
CELL = re.compile(r"(?P<status>\d) (?P<words>[^→]+?)(?: → (?P<then>[a-z]+))?")

# While these files exist, a start waits or fails.
HOLD = "/srv/hold-{name}"
FAIL = "/srv/fail-{name}"
DROP_IN = """\
[Unit]
StartLimitBurst={burst}
[Service]
RestartSec={pause}
ExecStartPre=+/bin/sh -c 'while [ -e /srv/hold-%i ]; do sleep 0.05; done; [ ! -e /srv/fail-%i ]'
"""


def read_table() -> dict[str, dict[str, str]]:
    """Return the table of docs/states.md: state → verb → cell."""
    rows = [
        line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")
    ]
    start = next(index for index, row in enumerate(rows) if row[0] == "verb")
    states = rows[start][1:]
    table: dict[str, dict[str, str]] = {state: {} for state in states}
    for row in rows[start + 2 :]:
        for state, cell in zip(states, row[1:], strict=True):
            table[state][row[0]] = cell
    return table


STATES = read_table()

# systemd's ActiveState and SubState, and QEMU's run state, of each state.
SIGNS = {
    "off": ("inactive/dead", None),
    "starting": ("activating/start-pre", None),
    "running": ("active/running", "running"),
    "paused": ("active/running", "paused"),
    "restarting": ("activating/auto-restart", None),
    "failed": ("failed/failed", None),
    "crash-loop": ("failed/failed", None),
}


def is_in(host: LabHost, name: str, state: str) -> bool:
    """Return whether a VM is in a state of the table."""
    if state == "gone":
        return not host.exists(f"/etc/qsysd/vms/{name}.yaml")
    now = active(host, name)
    if state == "stopping":
        return now.startswith("deactivating/")
    sign, guest = SIGNS[state]
    if now != sign or guest is None:
        return now == sign
    seen = listed(host, name)["guest"]
    # QEMU's run state of a paused guest after a reset
    return ("paused" if seen == "prelaunch" else seen) == guest


def wait_state(host: LabHost, name: str, state: str) -> None:
    """Wait until a VM is in a state."""
    host.wait_until(lambda: is_in(host, name, state) or None, timeout=60, what=f"{name} to be {state}")


class Holder:
    """Brings a VM into a state of the table, and keeps it there."""

    def __init__(self, host: LabHost, state: str) -> None:
        self.host = host
        self.state = state
        self.name = f"state-{state}"
        self.hold = HOLD.format(name=self.name)
        self.fail = FAIL.format(name=self.name)

    def make(self) -> None:
        """Create the VM, if it does not exist, and bring it into the state, if it is in another."""
        if not self.host.exists(f"/etc/qsysd/vms/{self.name}.yaml"):
            loop, pause = self.state == "crash-loop", self.state == "restarting"
            text = DROP_IN.format(burst=1 if loop else 50, pause="1h" if pause else "10ms")
            self.host.write(f"/etc/systemd/system/{unit(self.name)}.d/90-test.conf", text)
            deaf = ("tiny=ignore-button",) if self.state == "stopping" else ()
            self.host.qsysd("create", self.name, *tiny_options(*deaf), "--no-start", "--stop-timeout", "5min")
        if not is_in(self.host, self.name, self.state):
            self.off()
            getattr(self, "to_" + self.state.replace("-", "_"))()
            wait_state(self.host, self.name, self.state)

    def off(self) -> None:
        """Switch the VM off, in any state."""
        self.host.qsysd("kill", self.name)
        self.host.sh(
            f"systemctl reset-failed {unit(self.name)} 2>/dev/null || true; rm -f {self.hold} {self.fail}"
        )

    def to_off(self) -> None:
        """It is off."""

    def to_starting(self) -> None:
        """Start it, and hold it in its first step."""
        self.host.sh(f"touch {self.hold}; systemctl start --no-block {unit(self.name)}")

    def to_running(self) -> None:
        """Start it, and wait until the guest handles the power button."""
        booted = self.host.qsysd("logs", self.name, "--console", "-n", "5000").stdout.count("TINY READY")
        self.host.qsysd("start", self.name)
        wait_ready(self.host, self.name, times=booted + 1)

    def to_paused(self) -> None:
        """Start and pause it."""
        self.to_running()
        self.host.qsysd("pause", self.name)

    def to_stopping(self) -> None:
        """Stop a guest that ignores the power button."""
        self.host.qsysd("start", self.name)
        self.host.sh(f"systemctl stop --no-block {unit(self.name)}")

    def to_restarting(self) -> None:
        """Kill QEMU, with a restart delay of an hour."""
        self.host.qsysd("start", self.name)
        self.host.sh(f"kill -9 {main_pid(self.host, self.name)}")

    def to_failed(self) -> None:
        """Let a start fail, and make the next one possible."""
        self.host.sh(f"touch {self.fail}; systemctl start {unit(self.name)} || true; rm {self.fail}")

    def to_crash_loop(self) -> None:
        """Kill QEMU more often than the start limit allows."""
        self.host.qsysd("start", self.name)
        self.host.sh(f"kill -9 {main_pid(self.host, self.name)}")

    def release(self) -> str:
        """Return a shell command that releases the VM once the verb waits for it."""
        waits = f"until systemctl list-jobs | grep -q {self.name}; do sleep 0.1; done; sleep 0.5; "
        if self.state == "starting":
            return f"sleep 0.5; rm -f {self.hold}"
        if self.state == "stopping":
            return waits + f"systemctl kill --kill-whom=main -s TERM {unit(self.name)}"
        return "true"


@pytest.fixture(scope="module")
def holders(session_host: LabHost) -> Iterator[dict[str, Holder]]:
    """Give a holder for each state; their VMs are deleted at the end."""
    session_host.up()
    made = {state: Holder(session_host, state) for state in STATES}
    yield made
    for holder in made.values():
        if session_host.exists(f"/etc/qsysd/vms/{holder.name}.yaml"):
            session_host.qsysd("delete", holder.name, "--yes")
        session_host.sh(f"rm -rf /etc/systemd/system/{unit(holder.name)}.d {holder.hold} {holder.fail}")


def command_for(holder: Holder, verb: str) -> str:
    """Return the shell command of a verb."""
    name = holder.name
    if verb == "edit":
        # another size of memory each time, so that there is always something to change
        change = "awk '/^memory:/ { sub(/[0-9]+/, int($2) + 1) } { print }'"
        return f"qsysd show {name} | {change} > /tmp/{name}.yaml && qsysd edit {name} --file /tmp/{name}.yaml"
    return f"qsysd {verb} {name}" + (" --yes" if verb == "delete" else "")


@pytest.mark.parametrize(
    ("state", "verb"), [(state, verb) for state, verbs in STATES.items() for verb in verbs]
)
def test_cell(state: str, verb: str, holders: dict[str, Holder]) -> None:
    holder = holders[state]
    host, name = holder.host, holder.name
    holder.make()
    found = CELL.fullmatch(STATES[state][verb])
    assert found, f"docs/states.md: {state}, {verb}: {STATES[state][verb]!r} has another form"
    commands = [command_for(holder, verb)]
    if found["then"]:
        commands.append(holder.release())
    (status, words), *_ = at_once(host, *commands, timeout=180)
    assert status == int(found["status"]), words
    assert found["words"] in words
    if found["then"]:
        wait_state(host, name, found["then"])
    else:
        assert is_in(host, name, state), active(host, name)


def test_table_is_complete() -> None:
    from qsysd.cli.main import VERBS

    ours = {
        "create",
        "render",
        "schema",
        "ip",
        "ssh",
        "console",
        "image",
        "setup",
        "doctor",
        "completion",
        "recover",
        "help",
    }
    for verbs in STATES.values():
        assert set(verbs) == set(VERBS) - ours
    assert len(STATES) == len(SIGNS) + 1


def test_a_vm_that_does_not_stop_delays_no_other(
    host: LabHost, holders: dict[str, Holder], vm: VMFactory
) -> None:
    """A reload job of systemd waits for the stop jobs of all units that are ordered after the unit."""
    name = vm()
    holders["stopping"].make()
    host.qsysd("create", name, *tiny_options(), *FROZEN)
    host.qsysd("delete", name, "--yes", timeout=30)
    assert is_in(host, holders["stopping"].name, "stopping")


def test_start_while_stopping_starts_it_after_the_stop(host: LabHost, holders: dict[str, Holder]) -> None:
    """The command that waits for the stop reports that another command started the VM again."""
    holder = holders["stopping"]
    holder.make()
    (stopped, words), (started, _), _ = at_once(
        host,
        f"qsysd stop {holder.name}",
        f"sleep 0.5; qsysd start {holder.name}",
        "sleep 1.5; " + holder.release(),
    )
    assert started == 0
    assert stopped == 0 or "started it again" in words
    wait_active(host, holder.name, "active")

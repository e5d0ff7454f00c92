"""The results of verbs on VMs, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qsysd.errors import QsysdError


class State(StrEnum):
    """The result of a verb on one VM."""

    STARTED = "started"
    ALREADY_RUNNING = "already_running"
    STOPPED = "stopped"
    ALREADY_OFF = "already_off"
    KILLED = "killed"
    RESTARTED = "restarted"
    RESET = "reset"
    PAUSED = "paused"
    ALREADY_PAUSED = "already_paused"
    RESUMED = "resumed"
    ENABLED = "enabled"
    DISABLED = "disabled"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """The result of a verb on one VM.

    before, after: the states of the unit, as in `list`: systemd's ActiveState, for enable and disable whether
    the VM starts at host boot; "" if unknown. needed_by: the VM that depends on this one, if it was started
    for that reason only. error: of a FAILED verb.
    """

    name: str
    state: State
    before: str = ""
    after: str = ""
    needed_by: str = ""
    error: QsysdError | None = None


def failed(name: str, error: QsysdError, before: str = "", after: str = "") -> Outcome:
    """Return the outcome of a verb that failed on one VM."""
    return Outcome(name, State.FAILED, before, after, error=error)

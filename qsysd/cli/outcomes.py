"""The results of verbs on VMs, as text."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click

from qsysd.cli import print_error
from qsysd.host.outcomes import Outcome, State

STATE_TEXTS = {
    State.STARTED: "started",
    State.ALREADY_RUNNING: "already running",
    State.STOPPED: "stopped",
    State.ALREADY_OFF: "already off",
    State.KILLED: "killed",
    State.RESTARTED: "restarted",
    State.RESET: "reset",
    State.PAUSED: "paused",
    State.ALREADY_PAUSED: "already paused",
    State.RESUMED: "resumed",
    State.ENABLED: "enabled",
    State.DISABLED: "disabled",
}


def outcome_text(outcome: Outcome) -> str:
    """Return the line that reports an outcome without an error."""
    reason = f" ({outcome.needed_by} depends on it)" if outcome.needed_by else ""
    return f"{outcome.name}: {STATE_TEXTS[outcome.state]}{reason}"


def report(outcomes: Iterable[Outcome]) -> None:
    """Print the outcome of a verb for each VM; exit with the status of the first error."""
    status = 0
    for outcome in outcomes:
        if outcome.error:
            print_error(outcome.error)
            status = status or outcome.error.code
        else:
            click.echo(outcome_text(outcome))
    if status:
        sys.exit(status)

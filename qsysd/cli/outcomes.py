"""The results of verbs on VMs, as text."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from qsysd.cli.output import print_error

if TYPE_CHECKING:
    from qsysd.host.outcomes import Outcome

# by the values of qsysd.host.outcomes.State
STATE_TEXTS = {
    "started": "started",
    "already_running": "already running",
    "stopped": "stopped",
    "already_off": "already off",
    "killed": "killed",
    "restarted": "restarted",
    "reset": "reset",
    "paused": "paused",
    "already_paused": "already paused",
    "resumed": "resumed",
    "enabled": "enabled",
    "disabled": "disabled",
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

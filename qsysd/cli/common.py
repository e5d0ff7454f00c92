"""Shared by the verbs: names as arguments, tables, JSON, outcomes, questions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qsysd.cli import complete
from qsysd.errors import InvalidError

if TYPE_CHECKING:
    from qsysd.host.context import Host

Function = TypeVar("Function", bound=Callable[..., Any])


def make_host() -> Host:
    """Return this host, with progress and warnings on standard error."""
    from qsysd.cli.progress import Progress
    from qsysd.host.context import Host

    return Host(progress=Progress())


vm_argument = click.argument("name", metavar="VM", shell_complete=complete.vm)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def vms_arguments(function: Function) -> Function:
    """Give a verb several VMs as arguments, or --all of them."""
    function = click.option("--all", "everything", is_flag=True, help="All VMs of this host.")(function)
    return click.argument("names", metavar="[VM]...", nargs=-1, shell_complete=complete.vm)(function)


def chosen(host: Host, names: Sequence[str], everything: bool) -> list[str]:
    """Return the VMs that the arguments name, each once. Raises InvalidError for none."""
    if everything and names:
        raise InvalidError("names and --all exclude each other", hint="give names or --all")
    if everything:
        return host.store.names()
    if not names:
        path = click.get_current_context().command_path
        raise InvalidError("missing VM", hint=f"{path} VM... or {path} --all; qsysd list shows the VMs")
    return list(dict.fromkeys(names))


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    import json

    click.echo(json.dumps(value, indent=2))


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, coloured: Sequence[str] = ()
) -> None:
    """Print rows in columns that are as wide as they must be. coloured: the headers of state columns."""
    table = [tuple(header), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for number, row in enumerate(table):
        cells = list(map(str.ljust, row, widths))
        cells[-1] = cells[-1].rstrip()
        for column in (header.index(name) for name in coloured if number):
            cells[column] = in_colour(cells[column])
        click.echo("  ".join(cells).rstrip())


# By a state's first word: of systemd's and QEMU's states, and of the levels of doctor.
COLOURS = {
    "active": "green", "running": "green", "ok": "green",
    "activating": "yellow", "deactivating": "yellow", "reloading": "yellow", "paused": "yellow",
    "prelaunch": "yellow", "suspended": "yellow", "warning": "yellow",
    "failed": "red", "io-error": "red", "internal-error": "red", "guest-panicked": "red", "unknown": "red",
    "no": "red", "missing": "red",
}  # fmt: skip


def in_colour(state: str) -> str:
    """Return a state in its colour, where standard output shows colours."""
    colour = COLOURS.get(state.split()[0].rstrip(",:")) if state.split() else None
    return click.style(state, fg=colour) if colour and has_colours() else state


def has_colours() -> bool:
    """Return whether standard output shows colours; NO_COLOR turns them off (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_terminal() -> bool:
    """Return whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Continue only if a person agrees, else exit with 1. Raises InvalidError if nobody can be asked."""
    if yes:
        return
    if not is_terminal():
        raise InvalidError(
            "nothing was done: the question needs a terminal", hint="--yes answers it without a terminal"
        )
    if not click.confirm(question, err=True):
        click.echo("nothing was done", err=True)
        sys.exit(1)

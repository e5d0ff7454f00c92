"""Output of the verbs: errors, JSON, tables, colours."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence

import click

from qsysd.errors import QsysdError


def print_error(error: QsysdError) -> None:
    """Print an error and its hint."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, coloured: Sequence[str] = ()
) -> None:
    """Print rows in columns as wide as their widest cell. coloured: the headers of state columns."""
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

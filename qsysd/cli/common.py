"""What verbs share: the host, names as arguments, questions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qsysd.cli import complete
from qsysd.cli.outcomes import report
from qsysd.cli.progress import Progress
from qsysd.errors import InvalidError
from qsysd.requests import client
from qsysd.requests.request import Plain, Request

if TYPE_CHECKING:
    from qsysd.host.context import Host

Function = TypeVar("Function", bound=Callable[..., Any])


def make_host() -> Host:
    """Return this host, with progress and warnings on standard error."""
    return client.this_host(Progress())


def call(host: Host, operation: str, **arguments: Plain) -> Any:
    """Request an operation and return its result."""
    request = Request(operation, arguments)
    if os.environ.get("QSYSD_DEBUG"):
        click.echo(f"request {request.id}: {operation}", err=True)
    return client.call(host, request)


vm_argument = click.argument("name", metavar="VM", shell_complete=complete.vm)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would be removed.")


def vms_arguments(function: Function) -> Function:
    """Add the argument VM..., and the option --all, to a verb."""
    function = click.option("--all", "everything", is_flag=True, help="All VMs of this host.")(function)
    return click.argument("names", metavar="[VM]...", nargs=-1, shell_complete=complete.vm)(function)


def chosen(names: Sequence[str], everything: bool) -> list[str] | None:
    """Return the VMs that the arguments name, or None for all. Raise InvalidError for none."""
    if everything and names:
        raise InvalidError("names and --all exclude each other", hint="give names or --all")
    if everything:
        return None
    if not names:
        path = click.get_current_context().command_path
        raise InvalidError("missing VM", hint=f"{path} VM... or {path} --all; qsysd list shows the VMs")
    return list(names)


def vms_command(verb: str, text: str) -> click.Command:
    """Return the command of a verb that takes VMs and prints an outcome for each."""

    @click.command(verb, help=text)
    @vms_arguments
    def command(names: tuple[str, ...], everything: bool) -> None:
        report(call(make_host(), f"vm.{verb}", names=chosen(names, everything)))

    return command


def is_terminal() -> bool:
    """Return whether a question can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Continue only if the answer is yes, else exit with 1. Raise InvalidError without a terminal."""
    if yes:
        return
    if not is_terminal():
        raise InvalidError(
            "nothing was done: the question needs a terminal", hint="--yes answers it without a terminal"
        )
    if not click.confirm(question, err=True):
        click.echo("nothing was done", err=True)
        sys.exit(1)

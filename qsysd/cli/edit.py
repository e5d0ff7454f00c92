"""qsysd edit."""

from __future__ import annotations

import sys
import tempfile
from typing import TYPE_CHECKING, TextIO

import click

from qsysd.cli.common import call, is_terminal, make_host, vm_argument
from qsysd.cli.editor import edit_text
from qsysd.errors import QsysdError

if TYPE_CHECKING:
    from qsysd.operations.edit import Edited


@click.command("edit")
@vm_argument
@click.option(
    "--file", "-f", type=click.File(), help="Read the new definition from a file; - is standard input."
)
def command(name: str, file: TextIO | None) -> None:
    """Change the definition of a VM in your editor ($VISUAL, $EDITOR).

    A definition with errors is not stored; the errors are printed, and the text can be edited again. A
    running VM keeps its current configuration until `qsysd restart`; `qsysd status` shows what is pending.

    \b
    Examples:
      qsysd edit web1
      qsysd edit web1 --file web1.yaml
    """
    host = make_host()
    host.require_root()
    before: str = call(host, "vm.show", name=name)
    if file:
        edited: Edited = call(host, "vm.edit", name=name, text=file.read(), before=before)
    else:
        text = edit_text(before, name)
        while True:
            if text == before:
                click.echo(f"{name}: not changed")
                return
            try:
                edited = call(host, "vm.edit", name=name, text=text, before=before)
                break
            except QsysdError as error:
                if not is_terminal():
                    error.hint = _keep_text(text, name)
                    raise
                click.echo(error.message, err=True)
                if not click.confirm("Edit it again?", err=True):
                    click.echo(f"nothing was changed; {_keep_text(text, name)}", err=True)
                    sys.exit(error.code)
                text = edit_text(text, name)
    click.echo(f"{name}: changed" + (f"; takes effect after: qsysd restart {name}" if edited.restart else ""))


def _keep_text(text: str, name: str) -> str:
    """Write a text that was refused to a file; return its path and the command that uses it."""
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"qsysd-{name}-", suffix=".yaml", encoding="utf-8", delete=False
    ) as file:
        file.write(text)
    return f"your text is in {file.name}; fix it and run: qsysd edit {name} --file {file.name}"

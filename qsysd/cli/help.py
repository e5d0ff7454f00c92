"""qsysd help."""

from __future__ import annotations

import click

from qsysd.cli import complete
from qsysd.cli.usage import require_command
from qsysd.errors import InvalidError


@click.command("help")
@click.argument("words", metavar="[VERB]...", nargs=-1, shell_complete=complete.verb)
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of qsysd or of a verb: the same as --help.

    \b
    Examples:
      qsysd help
      qsysd help image build
    """
    context = ctx.find_root()
    for index, word in enumerate(words):
        if not isinstance(context.command, click.Group):
            raise InvalidError(f"{context.command_path} has no verbs", hint=f"{context.command_path} --help")
        found = require_command(context.command, context, words[index:])
        context = click.Context(found, info_name=word, parent=context, **found.context_settings)
    click.echo(context.get_help())

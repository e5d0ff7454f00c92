"""Errors in a command line, converted to qsysd's errors, with a hint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from qsysd.cli import foreign
from qsysd.errors import InvalidError
from qsysd.names import closest

# Never suggested for a word of similar spelling.
DESTRUCTIVE = ("delete", "kill", "reset", "rm")

# difflib's ratio: above it are swapped, missing and doubled letters, below it other words (resize, resume).
SIMILAR = 0.75


class Commands(click.Group):
    """A group that suggests a verb of similar spelling, and prints its help without a verb."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help when no arguments were given; click 8.2 ends with an error there."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs with their lines of help."""
        with formatter.section("Verbs"):
            formatter.write_dl(
                [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
            )

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; name it in an error about an option without its value, where click does not."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            verb = ctx.invoked_subcommand
            if error.ctx is None and verb and (command := self.get_command(ctx, verb)):
                error.ctx = click.Context(command, info_name=verb, parent=ctx)
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb. Raise InvalidError with a hint for an unknown one."""
        if not ctx.resilient_parsing and not args[0].startswith("-"):
            require_command(self, ctx, args)
        return super().resolve_command(ctx, args)


def require_command(group: click.Group, context: click.Context, words: Sequence[str]) -> click.Command:
    """Return the command of the verb in words[0]. Raise InvalidError with a hint for an unknown one."""
    command = group.get_command(context, words[0])
    if command is None:
        hint = foreign.instead(words[0], words[1:], image=context.parent is not None)
        if hint is None and (close := similar(words[0], group.list_commands(context))):
            hint = f"did you mean: {context.command_path} {close}"
        hint = hint or f"{context.command_path} --help lists the verbs"
        raise InvalidError(f"unknown verb {words[0]!r}", hint=hint)
    return command


def usage_error(error: click.ClickException) -> InvalidError:
    """Return an error of click as InvalidError."""
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context else "qsysd help VERB shows the options"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return InvalidError(f"missing {parameter_name(error.param)}", hint=hint)
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(error, context, hint)
    if isinstance(error, click.BadOptionUsage):
        return InvalidError(
            f"{error.option_name} needs a value", hint=foreign.VALUES.get(error.option_name, hint)
        )
    if isinstance(error, click.BadParameter) and error.param is not None:
        name = parameter_name(error.param)
        return InvalidError(f"{name}: {_sentence(error.message)}", hint=hint)
    return InvalidError(_sentence(error.format_message()), hint=hint)


def _unknown_option(error: click.NoSuchOption, context: click.Context | None, hint: str) -> InvalidError:
    message = f"unknown option {error.option_name}"
    known = [name for each in context.command.params for name in each.opts] if context else []
    if context and (instead := foreign.OPTIONS.get(context.command.name or "", {}).get(error.option_name)):
        return InvalidError(message, hint=instead)
    close = similar(error.option_name, known) or next(iter(error.possibilities or ()), None)
    return InvalidError(message, hint=f"did you mean {close}? See {hint}" if close else hint)


def parameter_name(parameter: click.Parameter) -> str:
    """Return the name of an option (`--name`) or argument (`VM`), as help shows it."""
    is_option = isinstance(parameter, click.Option)
    return max(parameter.opts, key=len) if is_option else parameter.human_readable_name


def similar(word: str, known: Iterable[str]) -> str | None:
    """Return the known word of similar spelling, but none that destroys something."""
    return closest(word, [name for name in known if name not in DESTRUCTIVE], similarity=SIMILAR)


def _sentence(text: str) -> str:
    """Return a message of click without its initial capital and full stop."""
    return (text[:1].lower() + text[1:]).rstrip(".")

"""setup, doctor, recover, completion, help."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from qsysd.cli import complete
from qsysd.cli.common import in_colour, json_option, make_host, print_json
from qsysd.cli.usage import require_command
from qsysd.errors import InvalidError


@click.command()
def setup() -> None:
    """Prepare this host: directories, units, the network `default`. Safe to repeat.

    The package runs it when it is installed; `pip install` does not.

    \b
    Example:
      sudo qsysd setup
    """
    from qsysd.operations import setup as operation

    done = operation.setup(make_host())
    for line in done:
        click.echo(line)
    if not done:
        click.echo("this host is ready")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check what this host needs, and name the remedies; exits with 7 if something is missing.

    \b
    Example:
      sudo qsysd doctor
    """
    from qsysd.operations import doctor as operation

    findings = operation.examine(make_host())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{in_colour(f'{finding.level:>7}')}  {finding.subject}: {finding.message}")
            if finding.remedy:
                click.echo(f"         → {finding.remedy}")
    if any(finding.level == "missing" for finding in findings):
        sys.exit(7)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell; the package installs them.

    \b
    Example:
      qsysd completion bash > /etc/bash_completion.d/qsysd
    """
    from click.shell_completion import get_completion_class

    from qsysd.cli import command

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    os.environ.setdefault("PATH", "/usr/bin:/bin")
    script = found(command, {}, "qsysd", "_QSYSD_COMPLETE").source()
    if shell == "zsh" and "loadautofunc" not in script:
        # Installed in fpath, the script is the function: click before 8.1.4 completed only from the
        # second time on.
        script += 'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _qsysd_completion "$@"; fi\n'
    click.echo(script)


@click.command()
def recover() -> None:
    """Repair what killed commands left: each VM is whole or removed afterwards.

    Every changing command, and each host boot, begins with it. Exits with 1 if something cannot be
    repaired yet.

    \b
    Example:
      sudo qsysd recover
    """
    from qsysd.host import recovery

    host = make_host()
    host.require_root()
    found = recovery.recover(host)
    if not found:
        click.echo("nothing to recover")
    if any(result.error for result in found):
        sys.exit(1)


@click.command("help")
@click.argument("words", metavar="[VERB]...", nargs=-1, shell_complete=complete.verb)
@click.pass_context
def help_verb(ctx: click.Context, words: Sequence[str]) -> None:
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

"""qsysd completion."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class

# click before 8.1.4: as an autoloaded function of zsh, the script completed only from the second time on.
ZSH_AUTOLOADED = 'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _qsysd_completion "$@"; fi\n'


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell. The Debian package installs the scripts.

    \b
    Example:
      qsysd completion bash > /etc/bash_completion.d/qsysd
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    os.environ.setdefault("PATH", "/usr/bin:/bin")
    script = found(ctx.find_root().command, {}, "qsysd", "_QSYSD_COMPLETE").source()
    if shell == "zsh" and "loadautofunc" not in script:
        script += ZSH_AUTOLOADED
    click.echo(script)

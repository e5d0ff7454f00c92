"""The command `qsysd`: one file per noun; a verb parses its arguments, calls one operation and prints.

Verbs are loaded when they are used: start-up is part of the product.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys

# A command ends before there is garbage worth looking for; while it imports, looking takes 8 ms.
gc.set_threshold(100_000)

import click  # noqa: E402

from qsysd import __version__  # noqa: E402
from qsysd.cli.usage import Commands, usage_error  # noqa: E402
from qsysd.cli.verbs import ALIASES, GROUPS, VERBS  # noqa: E402
from qsysd.errors import QsysdError  # noqa: E402

# as shells number them: 128 and the signal
INTERRUPTED = 130
BROKEN_PIPE = 141


class Verbs(Commands):
    """A group that imports a verb's module when the verb is used, and shows help without any import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs; completion offers them, so the aliases are left out."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a verb or an alias, or None."""
        verb = ALIASES.get(cmd_name, cmd_name)
        if verb not in VERBS:
            return None
        module, attribute, _ = VERBS[verb]
        command: click.Command = getattr(importlib.import_module(f"qsysd.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by group, each with its aliases and its line of help."""
        also = {verb: f"{verb}, {alias}" for alias, verb in ALIASES.items()}
        width = max(map(len, [*VERBS, *also.values()]))
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                rows = [(also.get(verb, verb).ljust(width), VERBS[verb][2]) for verb in verbs]
                formatter.write_dl(rows)


EPILOG = """\b
Examples:
  qsysd create web1 --image debian --wait
  qsysd ssh web1
  systemctl status qemu-vm@web1
  qsysd stop web1 web2
  qsysd delete web1
"""


@click.command(
    cls=Verbs,
    epilog=EPILOG,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="qsysd")
@click.option("--debug", is_flag=True, help="Show tracebacks, and each command that is run.")
def command(debug: bool) -> None:
    """Run QEMU virtual machines as ordinary systemd units.

    A VM web1 is the unit qemu-vm@web1: systemctl, journalctl and qsysd show and drive the same thing.
    """
    if debug:
        os.environ["QSYSD_DEBUG"] = "1"


def main() -> None:
    """Run the command line and exit with its status, one of those in qsysd.errors."""
    _open_streams()
    # What others must read (units, images, the helper) must not depend on the caller's umask.
    os.umask(0o022)
    # A polite end undoes what is half done, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    status = _run()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = status or BROKEN_PIPE
    except OSError as error:
        status = status or _failed(error)
    # Not sys.exit: GLib's bus thread was seen to crash in an interpreter that is being taken down, and
    # taking it down costs time. Nothing here relies on it.
    os._exit(status)


def _open_streams() -> None:
    """Open the streams that the caller has closed: no file of ours may get their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


def _run() -> int:
    """Run the command line; print what it raises, and return the exit status."""
    try:
        result = command.main(prog_name="qsysd", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SystemExit as error:
        return int(error.code or 0) if isinstance(error.code, int | None) else 1
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _failed(usage_error(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has enough (qsysd list | head)
        return BROKEN_PIPE
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """Show an error, with its traceback under --debug; return the exit status."""
    if os.environ.get("QSYSD_DEBUG"):
        import traceback

        traceback.print_exc()
    elif isinstance(error, QsysdError):
        print_error(error)
    elif isinstance(error, OSError):
        click.echo(f"error: {error}", err=True)
    else:
        click.echo(f"error: {type(error).__name__}: {error}", err=True)
        click.echo("hint: a mistake in qsysd: run it again with qsysd --debug, and report it", err=True)
    return error.code if isinstance(error, QsysdError) else QsysdError.code


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def print_error(error: QsysdError) -> None:
    """Print an error and what to do about it."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)

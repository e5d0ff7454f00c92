"""The command `qsysd`: the table of its verbs, error output and exit status.

The module of a verb has the verb's name, defines `command`, and is imported when the verb is used.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

from qsysd import __version__
from qsysd.cli.output import print_error
from qsysd.cli.usage import Commands, usage_error
from qsysd.errors import QsysdError

# title → verb → its line in --help; the verb's file has its name
GROUPS = {
    "Definitions": {
        "create": "Create a VM and start it.",
        "edit": "Change the definition of a VM.",
        "render": "Write or check the files that are rendered from definitions.",
        "delete": "Delete VMs with their disks.",
        "enable": "Start VMs at host boot.",
        "disable": "Do not start VMs at host boot.",
        "schema": "Print the JSON Schema of definitions, for editors.",
    },
    "Power": {
        "start": "Start VMs.",
        "stop": "Shut VMs down gracefully.",
        "restart": "Stop VMs gracefully and start them again.",
        "kill": "Switch VMs off without a shutdown of the guest.",
        "reset": "Press the reset button of VMs.",
        "pause": "Stop the processors of VMs.",
        "resume": "Resume the processors of paused VMs.",
    },
    "Display and access": {
        "list": "List the VMs of this host.",
        "status": "Show the status of VMs.",
        "show": "Show the definition of a VM.",
        "logs": "Show the journal of the unit and the log of the console.",
        "ip": "Show the address of a VM.",
        "ssh": "Log in to a guest by SSH, or run a command in it.",
        "console": "Connect to the serial console of a VM.",
    },
    "Images": {
        "image": "Base images: build, import, list, info, rm.",
    },
    "Host": {
        "setup": "Prepare this host; safe to repeat.",
        "doctor": "Check this host, and print remedies.",
        "recover": "Repair VMs that killed commands left incomplete.",
        "completion": "Print the completion script for a shell.",
        "help": "Show the help of qsysd or of a verb.",
    },
}

VERBS = {verb: line for verbs in GROUPS.values() for verb, line in verbs.items()}

ALIASES = {"ls": "list", "rm": "delete"}

# as shells number them: 128 and the signal
INTERRUPTED = 130
BROKEN_PIPE = 141


class Verbs(Commands):
    """A group that imports a verb's file when the verb is used, and shows help without any import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs that completion offers: all but the aliases."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a verb or an alias, or None."""
        verb = ALIASES.get(cmd_name, cmd_name)
        if verb not in VERBS:
            return None
        found: click.Command = importlib.import_module(f"qsysd.cli.{verb}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by group, each with its aliases and its line of help."""
        also = {verb: f"{verb}, {alias}" for alias, verb in ALIASES.items()}
        width = max(map(len, [*VERBS, *also.values()]))
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                rows = [(also.get(verb, verb).ljust(width), line) for verb, line in verbs.items()]
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
@click.option("--debug", is_flag=True, help="Print tracebacks, external commands and request IDs.")
def command(debug: bool) -> None:
    """Run QEMU virtual machines as ordinary systemd units.

    A VM web1 is the unit qemu-vm@web1: systemctl, journalctl and qsysd work on the same unit.
    """
    if debug:
        os.environ["QSYSD_DEBUG"] = "1"


def main() -> None:
    """Run the command line and exit with its status, one of those in qsysd.errors."""
    _open_streams()
    # Units, images and the helper must be readable whatever the caller's umask is.
    os.umask(0o022)
    # As for Ctrl-C, operations in progress are undone.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    status = run()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = status or BROKEN_PIPE
    except OSError as error:
        status = status or _failed(error)
    # Not sys.exit: GLib's bus thread was seen to crash during interpreter teardown, which also costs time.
    # Nothing here registers exit handlers.
    os._exit(status)


def _open_streams() -> None:
    """Open the streams that the caller has closed: no file of qsysd may get their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


def run() -> int:
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
        # The reader of the output has exited (qsysd list | head).
        return BROKEN_PIPE
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """Show an error, with its traceback under --debug; return the exit status."""
    if os.environ.get("QSYSD_DEBUG"):
        sys.excepthook(type(error), error, error.__traceback__)
    elif isinstance(error, QsysdError):
        print_error(error)
    elif isinstance(error, OSError):
        click.echo(f"error: {error}", err=True)
    else:
        click.echo(f"error: {type(error).__name__}: {error}", err=True)
        click.echo("hint: a bug in qsysd: run the command again with qsysd --debug, and report it", err=True)
    return error.code if isinstance(error, QsysdError) else QsysdError.code


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)

"""The command `qsysd`: a file a noun, a verb is parse, call one operation, print.

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
from qsysd.errors import QsysdError  # noqa: E402

# as shells number them: 128 and the signal
INTERRUPTED = 130
BROKEN_PIPE = 141

# verb → (module, attribute, help of one line), in the order in which help shows them
VERBS = {
    "create": ("vm", "create", "Make a VM and start it."),
    "delete": ("vm", "delete", "Remove VMs with their disks."),
    "start": ("control", "start", "Start VMs."),
    "stop": ("control", "stop", "Shut VMs down gracefully."),
    "kill": ("control", "kill", "Pull the plug of VMs."),
    "restart": ("control", "restart", "Stop VMs gracefully and start them again."),
    "reset": ("control", "reset", "Press the reset button of VMs."),
    "pause": ("control", "pause", "Stop the processors of VMs."),
    "resume": ("control", "resume", "Let paused VMs go on."),
    "enable": ("control", "enable", "Start VMs at host boot."),
    "disable": ("control", "disable", "Do not start VMs at host boot."),
    "list": ("inspect", "list_vms", "Show the VMs of this host."),
    "status": ("inspect", "status", "Show a VM as systemd and QEMU see it."),
    "show": ("inspect", "show", "Show the definition of a VM."),
    "logs": ("inspect", "logs", "Show what the unit, QEMU and the guest's console said."),
    "edit": ("vm", "edit", "Change the definition of a VM."),
    "render": ("vm", "render", "Write again what follows from definitions, or check it."),
    "ip": ("access", "ip", "Show the address of a VM."),
    "ssh": ("access", "ssh", "Log in to a guest, or run a command in it."),
    "console": ("access", "console", "Open the serial console of a VM."),
    "image": ("image", "image", "Base images: build, import, list, info, rm."),
    "setup": ("host", "setup", "Prepare this host; safe to repeat."),
    "doctor": ("host", "doctor", "Check all that this host needs, and name the remedies."),
    "completion": ("host", "completion", "Print the completion script for a shell."),
    "recover": ("host", "recover", "Remove what a killed command left half-made."),
}


class Verbs(click.Group):
    """A group that imports a verb's module when the verb is used, and shows help without any import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb's command, or None."""
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"qsysd.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs with their lines of help."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line) for name, (_, _, line) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb; suggest a near one for one that does not exist."""
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, VERBS, 1)
            ctx.fail(f"there is no verb {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)


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
        error.show()
        return error.exit_code
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

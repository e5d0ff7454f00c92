"""The lab's command line: parse, call one function, print."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import labroot
import tiny_guest
from labhost import Host, all_names, all_notes, cache_folder
from labnet import Network
from labproc import LabError, say
from labroot import SUITES

DEFAULT_HOST = "host1"


def lab_folder() -> Path:
    """Return the lab's work folder: $QSYSD_LAB_DIR, or build/lab of this repository."""
    return Path(os.environ.get("QSYSD_LAB_DIR") or Path(__file__).parents[2] / "build/lab").resolve()


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = parser().parse_args(arguments)
    if os.geteuid() != 0:
        print("lab: root privileges are required: use sudo", file=sys.stderr)
        return 1
    try:
        status: int = options.run(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="lab",
        description="Debian hosts for tests, in containers on this machine.",
        epilog=f"Without a name, a command is applied to {DEFAULT_HOST}.",
    )
    top.add_argument("--lab-dir", type=Path, default=lab_folder(), help="the lab's work folder (%(default)s)")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, function: object, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=function)
        return command

    command = add("up", run_up, "create and boot hosts, and wait until they have booted")
    command.add_argument("names", nargs="*", metavar="NAME", default=[DEFAULT_HOST])
    command.add_argument("--suite", choices=SUITES, help=f"Debian suite of a new host ({SUITES[0]})")

    command = add("exec", run_exec, "run a command on a host, as root")
    command.add_argument("--host", default=DEFAULT_HOST, metavar="NAME")
    command.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")

    for name, function, summary in (
        ("shell", run_shell, "open a shell on a host"),
        ("reboot", run_reboot, "reboot a host"),
        ("crash", run_crash, "cut the power of a host, and boot it again"),
        ("poweroff", run_power_off, "shut a host down; `up` boots it again"),
        ("console", run_console, "print the console output of a host"),
    ):
        command = add(name, function, summary)
        command.add_argument("name", nargs="?", metavar="NAME", default=DEFAULT_HOST)

    command = add("put", run_put, "copy a file or directory from the machine to a host")
    command.add_argument("--host", default=DEFAULT_HOST, metavar="NAME")
    command.add_argument("source")
    command.add_argument("target")

    command = add("get", run_get, "copy a file or directory from a host to the machine")
    command.add_argument("--host", default=DEFAULT_HOST, metavar="NAME")
    command.add_argument("source")
    command.add_argument("target")

    command = add(
        "build", run_build, "build root file systems and the tiny guest, if they are not in the cache"
    )
    command.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (all)")

    add("status", run_status, "list the hosts").add_argument("name", nargs="?", metavar="NAME")

    command = add("down", run_down, "end hosts at once and remove all that they wrote")
    command.add_argument("names", nargs="*", metavar="NAME")
    command.add_argument("--all", action="store_true", help="every host of this lab")

    command = commands.add_parser("supervise")
    command.set_defaults(run=lambda options: Host(options.lab_dir, options.name).supervise())
    command.add_argument("name")
    return top


def run_up(options: argparse.Namespace) -> int:
    """Make and boot hosts."""
    for name in options.names:
        host = Host(options.lab_dir, name)
        host.up(options.suite)
        say(f"{name} is up: {host.address()}")
    return 0


def run_build(options: argparse.Namespace) -> int:
    """Build the roots, all at once, and the tiny guest."""
    cache = cache_folder(options.lab_dir)
    with ThreadPoolExecutor() as pool:
        roots = [pool.submit(labroot.ensure, cache, suite) for suite in options.suites or SUITES]
        tiny_guest.ensure(cache)
        for root in roots:
            root.result()
    return 0


def run_exec(options: argparse.Namespace) -> int:
    """Run a command in a host."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise LabError("exec needs a command")
    Host(options.lab_dir, options.host).become(command)
    return 1


def run_shell(options: argparse.Namespace) -> int:
    """Open a shell in a host."""
    Host(options.lab_dir, options.name).become(["/bin/bash", "--login"])
    return 1


def run_reboot(options: argparse.Namespace) -> int:
    """Reboot a host."""
    Host(options.lab_dir, options.name).reboot()
    return 0


def run_crash(options: argparse.Namespace) -> int:
    """Cut a host's power."""
    Host(options.lab_dir, options.name).crash()
    return 0


def run_power_off(options: argparse.Namespace) -> int:
    """Switch a host off."""
    Host(options.lab_dir, options.name).power_off()
    return 0


def run_console(options: argparse.Namespace) -> int:
    """Print a host's console."""
    sys.stdout.write(Host(options.lab_dir, options.name).console.read_text(errors="replace"))
    return 0


def run_put(options: argparse.Namespace) -> int:
    """Copy into a host."""
    Host(options.lab_dir, options.host).put(Path(options.source), options.target)
    return 0


def run_get(options: argparse.Namespace) -> int:
    """Copy out of a host."""
    Host(options.lab_dir, options.host).get(options.source, Path(options.target))
    return 0


def run_status(options: argparse.Namespace) -> int:
    """List the hosts, or one; the exit status is 3 if one was asked for that is not up."""
    notes = [note for note in all_notes(options.lab_dir) if options.name in (None, note.name)]
    print(f"{'NAME':<12} {'SUITE':<10} {'STATE':<6} {'ADDRESS':<16} LEADER")
    up = False
    for note in notes:
        host = Host(options.lab_dir, note.name)
        leader = host.leader()
        up = leader is not None
        state, address, pid = ("up", host.address(), leader.pid) if leader else ("off", "-", "-")
        print(f"{note.name:<12} {note.suite:<10} {state:<6} {address!s:<16} {pid}")
    return 3 if options.name and not up else 0


def run_down(options: argparse.Namespace) -> int:
    """Remove hosts, and with the last one the network."""
    names = all_names(options.lab_dir) if options.all else options.names or [DEFAULT_HOST]
    for name in names:
        Host(options.lab_dir, name).down()
    Network(options.lab_dir).down_if_unused()
    return 0

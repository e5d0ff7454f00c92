"""create, delete, edit, render."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from qsysd.cli import complete, print_error
from qsysd.cli.common import (
    chosen,
    confirm,
    is_terminal,
    json_option,
    make_host,
    print_json,
    vm_argument,
    vms_arguments,
)
from qsysd.errors import InvalidError, QsysdError


@click.command(
    epilog="""\b
Examples:
  qsysd create web1 --image debian
  qsysd create web1 --image debian --memory 2G --cpus 2 --disk 20G --wait
  qsysd create tiny --kernel /boot/vmlinuz --initrd /srv/initrd --append console=ttyS0
  qsysd create --file web1.yaml
"""
)
@click.argument("name", required=False)
@click.option(
    "--file", "-f", type=click.File(), help="Read the definition from a YAML file; - is standard input."
)
@click.option(
    "--image",
    shell_complete=complete.image_or_recipe,
    help="Base image; `debian` is built if it does not exist.",
)
@click.option("--memory", metavar="SIZE", help="Memory: 512M, 2G; a bare number is MiB.")
@click.option("--cpus", "--vcpus", metavar="N", help="Number of processors.")
@click.option("--cpu", metavar="MODEL", help="QEMU's CPU model.")
@click.option(
    "--disk", "disks", multiple=True, metavar="SIZE", help="Disk: 20G; the first is the image's. Repeatable."
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    shell_complete=complete.network,
    metavar="NAME",
    help="Network of a NIC, or none. Repeatable.",
)
@click.option("--kernel", type=click.Path(), help="Kernel for direct boot.")
@click.option("--initrd", type=click.Path(), help="Initial RAM disk of the kernel.")
@click.option("--append", metavar="WORDS", help="Command line of the kernel.")
@click.option("--machine", metavar="TYPE", help="QEMU's machine type; pinned to its version at create.")
@click.option(
    "--accel", metavar="auto|kvm|tcg", shell_complete=complete.accelerator, help="Accelerator of the guest."
)
@click.option("--user", metavar="USER", help="Login of `qsysd ssh`; not created in the guest.")
@click.option(
    "--ssh-key",
    "ssh_keys",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True),
    help="Public key for the guest's first boot. Repeatable.",
)
@click.option(
    "--depends-on", multiple=True, metavar="VM", shell_complete=complete.vm, help="Start after this VM."
)
@click.option("--stop-timeout", metavar="TIME", help="Time that the guest has to power off: 90s, 5min.")
@click.option("--qemu-arg", "qemu_args", multiple=True, metavar="ARG", help="Argument for QEMU. Repeatable.")
@click.option("--start/--no-start", default=True, help="Start the VM now.", show_default=True)
@click.option("--enable/--no-enable", default=True, help="Start the VM at host boot.", show_default=True)
@click.option("--wait", is_flag=True, help="Wait until the guest answers on SSH.")
@click.option(
    "--wait-timeout",
    metavar="SECONDS",
    type=click.FloatRange(1),
    default=300.0,
    show_default="300",
    help="Longest time that --wait waits.",
)
@json_option
def create(name: str | None, as_json: bool, **options: Any) -> None:
    """Create a VM and start it; all of it or nothing.

    The definition is written to /etc/qsysd/vms/NAME.yaml. MAC, UUID, address and machine type are chosen
    once and kept. Without options a VM has 1G of memory, one processor, a disk of 10G on its image,
    and a NIC on the network `default`.
    """
    from qsysd.host import keys
    from qsysd.operations import create as operation

    host = make_host()
    if options["wait"] and not options["start"]:
        raise InvalidError("--wait needs a VM that is started", hint="leave out --no-start or --wait")
    text, source = _definition(name, options)
    if options["wait"]:
        operation.require_network(host, text, source)
    given = [key for path in options["ssh_keys"] for key in keys.read_keys(path)]
    operation.ensure_image(host, text, source)
    spec = operation.create(
        host,
        text,
        source,
        start=options["start"],
        enable=options["enable"],
        ssh_keys=[*given, *keys.for_new_guest(host.scope)],
    )
    if not as_json:
        address = next((nic.address for nic in spec.nics if nic.address), None)
        click.echo(
            f"{spec.name}: {'running' if options['start'] else 'created'}"
            + (f" at {address}" if address else "")
        )
    if options["wait"]:
        from qsysd.operations import guest

        seconds = guest.wait(host, spec.name, timeout=options["wait_timeout"])
        if not as_json:
            click.echo(f"{spec.name}: answers on SSH after {seconds:.0f} s; qsysd ssh {spec.name}")
    if as_json:
        _print_created(host, spec.name)


def _print_created(host: Any, name: str) -> None:
    from dataclasses import asdict

    from qsysd.operations import query

    print_json(asdict(query.list_vms(host, [name])[0]))


def _definition(name: str | None, options: dict[str, Any]) -> tuple[str, str]:
    """Return the definition from file or options, and the file's name."""
    document = {
        key: value
        for key, value in {
            "image": options["image"],
            "memory": options["memory"],
            "cpus": options["cpus"],
            "cpu": options["cpu"],
            "machine": options["machine"],
            "accel": options["accel"],
            "disks": [{"size": size} for size in options["disks"]],
            "kernel": options["kernel"],
            "initrd": options["initrd"],
            "append": options["append"],
            "user": options["user"],
            "depends_on": list(options["depends_on"]),
            "stop_timeout": options["stop_timeout"],
            "qemu_args": list(options["qemu_args"]),
        }.items()
        if value not in (None, [])
    }
    if options["networks"]:
        document["nics"] = [{"network": network} for network in options["networks"] if network != "none"]
    if options["file"]:
        if document or name:
            raise InvalidError(
                "--file excludes NAME and the options for what the file contains",
                hint="set them in the file (keys: man qsysd.yaml)",
            )
        return options["file"].read(), options["file"].name
    if name is None:
        raise InvalidError("missing NAME", hint="qsysd create web1 --image debian")
    from qsysd.config import dump

    return dump.dump({"name": name, **document}), ""


@click.command()
@vms_arguments
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
def delete(names: Sequence[str], everything: bool, yes: bool, dry_run: bool) -> None:
    """Delete VMs with their disks; a running VM is switched off first.

    Shows what will be removed and asks. Drop-ins that are not qsysd's are kept and named.

    \b
    Examples:
      qsysd delete web1
      qsysd delete web1 web2 --yes
      qsysd delete --all --dry-run
    """
    from qsysd.operations import delete as operation

    host = make_host()
    host.require_root()
    vms = chosen(host, names, everything)
    contents = {vm: operation.contents(host, vm) for vm in vms}
    for vm, lines in contents.items():
        click.echo(f"{vm}: this will be removed:" if not yes or dry_run else f"{vm}: removing", err=True)
        for line in lines:
            click.echo(f"  {line}", err=True)
    if dry_run or not vms:
        return
    confirm(f"Remove {'it' if len(vms) == 1 else 'them'}?", yes=yes)
    done = operation.delete(host, vms)
    for vm in vms:
        if vm not in done.failed:
            click.echo(f"{vm}: deleted")
    for path in done.kept:
        click.echo(f"{path} is not qsysd's and was kept")
    for error in done.failed.values():
        print_error(error)
    if done.failed:
        sys.exit(next(iter(done.failed.values())).code)


@click.command()
@vm_argument
@click.option(
    "--file", "-f", type=click.File(), help="Read the new definition from a file; - is standard input."
)
def edit(name: str, file: Any) -> None:
    """Change the definition of a VM in your editor ($VISUAL, $EDITOR).

    Errors are shown, and the file can be corrected. A running VM keeps what it was started with until
    `qsysd restart`; `qsysd status` shows what is pending.

    \b
    Examples:
      qsysd edit web1
      qsysd edit web1 --file web1.yaml
    """
    from qsysd.operations import edit as operation

    host = make_host()
    host.require_root()
    before = host.store.require(name)
    if file:
        waits = operation.edit(host, name, file.read(), before=before)
    else:
        text = _edit_text(before, name)
        while True:
            if text == before:
                click.echo(f"{name}: not changed")
                return
            try:
                waits = operation.edit(host, name, text, before=before)
                break
            except QsysdError as error:
                if not is_terminal():
                    error.hint = _keep_text(text, name)
                    raise
                click.echo(error.message, err=True)
                if not click.confirm("Edit it again?", err=True):
                    click.echo(f"nothing was changed; {_keep_text(text, name)}", err=True)
                    sys.exit(error.code)
                text = _edit_text(text, name)
    click.echo(f"{name}: changed" + (f"; takes effect after: qsysd restart {name}" if waits else ""))


def _keep_text(text: str, name: str) -> str:
    """Write a text that was refused to a file; return where it is and how to try it again."""
    import tempfile

    with tempfile.NamedTemporaryFile(
        "w", prefix=f"qsysd-{name}-", suffix=".yaml", encoding="utf-8", delete=False
    ) as file:
        file.write(text)
    return f"your text is in {file.name}; fix it and run: qsysd edit {name} --file {file.name}"


def _edit_text(text: str, name: str) -> str:
    """Return the text as the caller's editor leaves it. Raises QsysdError when the editor fails."""
    import shlex
    import tempfile

    from qsysd import files, process
    from qsysd.runtime import spawn

    editor = (os.environ.get("VISUAL") or os.environ.get("EDITOR") or "").strip()
    if not editor:
        editor = next((found for found in ("sensible-editor", "nano", "vi") if spawn.find(found)), "vi")
    try:
        words = shlex.split(editor)
    except ValueError as error:
        raise QsysdError(f"the editor {editor!r} is not a command: {error}", hint="EDITOR=nano") from error
    with tempfile.NamedTemporaryFile("w+", prefix=f"qsysd-{name}-", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        status = process.foreground([*words, file.name])
        if status:
            raise QsysdError(
                f"the editor ended with status {status}; nothing was changed", hint=f"EDITOR is {editor!r}"
            )
        # an editor may put a new file in the place of the old one
        changed = files.read_text(file.name)
        if changed is None:
            raise QsysdError(f"the editor removed {file.name}; nothing was changed")
        return changed


@click.command()
@vms_arguments
@click.option("--check", is_flag=True, help="Only show what differs; exit with 1 if anything does.")
@json_option
def render(names: Sequence[str], everything: bool, check: bool, as_json: bool) -> None:
    """Write the files that follow from definitions: environment files, drop-ins and seeds.

    Needed after a definition was changed by hand, or restored from a backup. All VMs by default.

    \b
    Examples:
      qsysd render --check
      qsysd render web1
    """
    from qsysd.operations import edit as operation

    host = make_host()
    host.require_root()
    vms = chosen(host, names, everything) if names else host.store.names()
    differences = (operation.check if check else operation.render_again)(host, vms)
    if as_json:
        print_json(differences)
    else:
        for vm, files in differences.items():
            for path in files:
                click.echo(f"{vm}: {path} {'differs from its definition' if check else 'written'}")
        if not any(differences.values()):
            click.echo("all files match their definitions")
    if check and any(differences.values()):
        sys.exit(1)

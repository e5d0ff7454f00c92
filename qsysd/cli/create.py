"""qsysd create."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import click

from qsysd.cli.common import call, json_option, make_host
from qsysd.cli.definition import Document, definition_options
from qsysd.cli.output import print_json
from qsysd.config import public_keys
from qsysd.errors import InvalidError
from qsysd.paths import is_name

if TYPE_CHECKING:
    from qsysd.operations.create import Created

EPILOG = """\b
Examples:
  qsysd create web1 --image debian
  qsysd create web1 --image debian --memory 2G --cpus 2 --disk 20G --wait
  qsysd create web1 --image debian --nic network=default,address=10.83.0.50
  qsysd create tiny --kernel /boot/vmlinuz --initrd /srv/initrd --append console=ttyS0
  qsysd create --file web1.yaml
"""


@click.command("create", epilog=EPILOG)
@click.argument("name", required=False)
@click.option(
    "--file", "-f", type=click.File(), help="Read the definition from a YAML file; - is standard input."
)
@definition_options
@click.option(
    "--ssh-key",
    "ssh_keys",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True),
    help="Public key for the guest's first boot. Repeatable.",
)
@click.option("--start/--no-start", default=True, help="Start the VM now.", show_default=True)
@click.option("--enable/--no-enable", default=True, help="Start the VM at host boot.", show_default=True)
@click.option("--wait", is_flag=True, help="Wait until the guest's SSH server answers.")
@click.option(
    "--wait-timeout",
    metavar="SECONDS",
    type=click.FloatRange(1),
    default=300.0,
    show_default="300",
    help="Timeout of --wait.",
)
@json_option
def command(
    name: str | None,
    file: TextIO | None,
    document: Document,
    ssh_keys: tuple[str, ...],
    start: bool,
    enable: bool,
    wait: bool,
    wait_timeout: float,
    as_json: bool,
) -> None:
    """Create a VM and start it. If a step fails, everything is removed again.

    The definition is written to /etc/qsysd/vms/NAME.yaml. MAC, UUID, address and machine type are chosen
    once and kept. By default a VM has 1G of memory, one processor, an image with a disk of 10G, and a NIC
    on the network `default`.
    """
    given, source = definition(name, file, document)
    created: Created = call(
        make_host(),
        "vm.create",
        definition=given,
        source=source,
        ssh_keys=[key for path in ssh_keys for key in public_keys.read(path)],
        start=start,
        enable=enable,
        wait=wait,
        wait_timeout=wait_timeout,
    )
    if as_json:
        print_json(asdict(created.vm))
        return
    vm = created.vm.name
    if created.answered_after is not None:
        # The address was reported as progress before the wait.
        click.echo(f"{vm}: answers on SSH after {created.answered_after:.0f} s; qsysd ssh {vm}")
        return
    where = f" at {created.address}" if created.address else ""
    click.echo(f"{vm}: {'running' if start else 'created'}{where}")


def definition(name: str | None, file: TextIO | None, document: Document) -> tuple[str | Document, str]:
    """Return the definition: YAML and the name of its file, or a mapping made from the options and ""."""
    if file:
        if document or name:
            raise InvalidError(
                "--file excludes NAME and the options for what the file contains",
                hint="set them in the file (keys: man qsysd.yaml)",
            )
        return file.read(), file.name
    if name is None:
        raise InvalidError("missing NAME", hint="qsysd create web1 --image debian")
    if not document.keys() & {"image", "kernel", "disks"}:
        hint = f"qsysd create {name if is_name(name) else 'NAME'} --image debian"
        raise InvalidError("missing --image, --kernel or --disk", hint=hint)
    return {"name": name, **document}, ""

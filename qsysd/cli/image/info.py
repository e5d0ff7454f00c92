"""qsysd image info."""

from __future__ import annotations

from dataclasses import asdict

import click

from qsysd import values
from qsysd.cli import complete
from qsysd.cli.common import call, json_option, make_host
from qsysd.cli.output import print_json


@click.command("info")
@click.argument("name", shell_complete=complete.image)
@json_option
def command(name: str, as_json: bool) -> None:
    """Show an image, and the VMs that use it.

    \b
    Example:
      qsysd image info debian
    """
    found, users = call(make_host(), "image.info", name=name)
    if as_json:
        print_json(asdict(found) | {"used_by": users.vms, "use_unknown": users.unknown})
        return
    for label, text in (
        ("name", found.name),
        ("file", f"{found.path}, {values.human_size(found.file_size)}"),
        ("disk", values.human_size(found.virtual_size)),
        ("source", found.source),
        ("created", found.created),
        ("sha256", found.sha256),
        ("user", found.default_user or "-"),
        ("cloud-init", "yes" if found.cloud_init else "no"),
        ("used by", ", ".join(users.vms) or "no VM"),
        *(("unknown", f"{vm}: {values.printable(problem)}") for vm, problem in users.unknown.items()),
        *([("problem", found.problem)] if found.problem else []),
    ):
        click.echo(f"{label:>10}  {text}")

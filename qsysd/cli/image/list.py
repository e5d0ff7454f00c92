"""qsysd image list."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qsysd import values
from qsysd.cli.common import call, json_option, make_host
from qsysd.cli.output import print_json, print_table

if TYPE_CHECKING:
    from qsysd.images.catalog import Image


@click.command("list")
@json_option
def command(as_json: bool) -> None:
    """Show the images of this host.

    \b
    Example:
      qsysd image list
    """
    found: list[Image] = call(make_host(), "image.list")
    if as_json:
        print_json([asdict(each) for each in found])
        return
    if not found:
        click.echo("no images; build one: qsysd image build debian", err=True)
        return
    print_table(
        ("NAME", "SIZE", "DISK", "USER", "SOURCE"),
        (
            (
                each.name,
                values.human_size(each.file_size),
                values.human_size(each.virtual_size),
                each.default_user or "-",
                f"BROKEN: {each.problem}" if each.problem else each.source,
            )
            for each in found
        ),
    )

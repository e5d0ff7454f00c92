"""qsysd image import."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qsysd.cli.common import call, json_option, make_host
from qsysd.cli.image.output import print_image

if TYPE_CHECKING:
    from qsysd.images import Image


@click.command("import")
@click.argument("file", type=click.Path())
@click.option("--name", required=True, metavar="NAME", help="Name of the image.")
@click.option("--user", metavar="USER", help="User that its cloud-init creates, for `qsysd ssh`.")
@click.option(
    "--cloud-init/--no-cloud-init", default=True, show_default=True, help="Whether the guest runs cloud-init."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["qcow2", "raw", "vmdk", "vdi", "vhdx"]),
    help="The file's format; detected by default. raw takes any file as a disk.",
)
@json_option
def command(
    file: str, name: str, user: str | None, cloud_init: bool, kind: str | None, as_json: bool
) -> None:
    """Create an image from a disk file: qcow2, raw, vmdk, vdi or vhdx.

    A raw disk must begin with a boot sector, a partition table or a file system; --format raw imports any
    other file.

    \b
    Examples:
      qsysd image import debian-12-genericcloud-amd64.qcow2 --name debian12 --user debian
      qsysd image import data.img --name data --format raw --no-cloud-init
    """
    made: Image = call(
        make_host(),
        "image.import",
        path=file,
        name=name,
        user=user,
        cloud_init=cloud_init,
        kind=kind,
    )
    print_image(made, as_json=as_json)

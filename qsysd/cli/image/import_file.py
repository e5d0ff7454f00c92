"""qsysd image import."""

from __future__ import annotations

import posixpath
import re
import shlex
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from qsysd.cli.common import call, json_option, make_host
from qsysd.cli.image.output import print_image
from qsysd.errors import InvalidError
from qsysd.image_names import import_command
from qsysd.values import printable

if TYPE_CHECKING:
    from qsysd.images.catalog import Image


def _local_file(_ctx: click.Context, _parameter: click.Parameter, file: str) -> str:
    """Return the path of the file. Raise InvalidError for a URL."""
    if re.match("[a-z]+://", file):
        path = posixpath.basename(urlsplit(file).path) or "FILE"
        raise InvalidError(
            f"{printable(file)} is a URL, not a file",
            hint=f"curl -LO {printable(shlex.quote(file))}; {import_command(path)}",
        )
    return file


@click.command("import")
@click.argument("file", type=click.Path(), callback=_local_file)
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

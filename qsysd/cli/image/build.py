"""qsysd image build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qsysd import values
from qsysd.cli import complete
from qsysd.cli.common import call, json_option, make_host
from qsysd.cli.image.output import print_image
from qsysd.errors import InvalidError

if TYPE_CHECKING:
    from qsysd.images.catalog import Image


@click.command("build")
@click.argument("recipe", shell_complete=complete.recipe)
@click.option("--name", metavar="NAME", help="Name of the image; default: the recipe's.")
@click.option(
    "--suite",
    metavar="SUITE",
    shell_complete=complete.suite,
    help="Debian's suite: bookworm, trixie; default: this host's.",
)
@click.option("--size", metavar="SIZE", help="Size of the virtual disk; those of VMs can be larger.")
@json_option
def command(recipe: str, name: str | None, suite: str | None, size: str | None, as_json: bool) -> None:
    """Build an image from a recipe: debian.

    \b
    Examples:
      qsysd image build debian
      qsysd image build debian --suite trixie --name debian13
    """
    try:
        bytes_of_disk = values.parse_size(size, default_unit="G") if size else None
    except ValueError as error:
        raise InvalidError(f"--size: {error}") from error
    made: Image = call(make_host(), "image.build", recipe=recipe, name=name, suite=suite, size=bytes_of_disk)
    print_image(made, as_json=as_json)

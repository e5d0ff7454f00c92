"""What `image build` and `image import` print."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qsysd import values
from qsysd.cli.output import print_json

if TYPE_CHECKING:
    from qsysd.images.catalog import Image


def print_image(image: Image, *, as_json: bool) -> None:
    """Print a new image in one line, or as JSON."""
    if as_json:
        print_json(asdict(image))
    else:
        click.echo(f"{image.name}: {values.human_size(image.file_size)}, {image.source}")

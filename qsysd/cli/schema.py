"""qsysd schema."""

from __future__ import annotations

import click

from qsysd.cli.output import print_json
from qsysd.config import schema

SCHEMAS = {"vm": schema.vm, "network": schema.network, "defaults": schema.defaults}


@click.command("schema")
@click.argument("kind", type=click.Choice(list(SCHEMAS)), default="vm")
def command(kind: str) -> None:
    """Print the JSON Schema of a definition, for editors that check and complete YAML.

    \b
    Examples:
      qsysd schema > vm.schema.json
      qsysd schema network > network.schema.json
    """
    print_json(SCHEMAS[kind]())

"""qsysd doctor."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qsysd.cli.common import call, json_option, make_host
from qsysd.cli.output import in_colour, print_json
from qsysd.errors import HostError

if TYPE_CHECKING:
    from qsysd.operations.doctor import Finding


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Check this host, and print a remedy for each problem; exit with 7 if something is missing.

    \b
    Example:
      sudo qsysd doctor
    """
    findings: list[Finding] = call(make_host(), "host.doctor")
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{in_colour(f'{finding.level:>7}')}  {finding.subject}: {finding.message}")
            if finding.remedy:
                click.echo(f"         → {finding.remedy}")
    if any(finding.level == "missing" for finding in findings):
        sys.exit(HostError.code)

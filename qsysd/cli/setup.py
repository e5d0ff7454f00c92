"""qsysd setup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qsysd.cli.common import call, make_host

if TYPE_CHECKING:
    from qsysd.operations.setup import SetUp

# by the values of qsysd.operations.setup.Action: the subject and the detail of a step are filled in
STEP_TEXTS = {
    "created_group": "created the group {}",
    "installed_helper": "installed the units' helper in {}",
    "installed_unit": "installed {}",
    "created_network": "created the network {} on {}",
    "rendered_network": "rendered the network {}",
    "started_unit": "started {}",
    "rendered_vm": "rendered {}",
}


@click.command("setup")
def command() -> None:
    """Prepare this host: create directories, units and the network `default`. Safe to repeat.

    The installation of the Debian package runs it; `pip install` does not.

    \b
    Example:
      sudo qsysd setup
    """
    done: SetUp = call(make_host(), "host.setup")
    for step in done.steps:
        click.echo(STEP_TEXTS[step.action].format(step.subject, step.detail))
    if not done.steps:
        click.echo("this host is ready")
    if done.outdated:
        click.echo(f"to apply: qsysd restart {' '.join(done.outdated)}")

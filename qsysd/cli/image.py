"""image build, import, list, info, rm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from qsysd.cli import complete
from qsysd.cli.common import confirm, json_option, make_host, print_json, print_table
from qsysd.cli.usage import Commands


@click.group(cls=Commands, subcommand_metavar="VERB [ARGS]...")
def image() -> None:
    """Base images: the disks of VMs are overlays on them."""


@image.command()
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
def build(recipe: str, name: str | None, suite: str | None, size: str | None, as_json: bool) -> None:
    """Build an image from a recipe: debian.

    \b
    Examples:
      qsysd image build debian
      qsysd image build debian --suite trixie --name debian13
    """
    from qsysd import values
    from qsysd.errors import InvalidError
    from qsysd.operations import image as operation

    try:
        bytes_of_disk = values.parse_size(size, default_unit="G") if size else None
    except ValueError as error:
        raise InvalidError(f"--size: {error}") from error
    made = operation.build(make_host(), recipe, name=name, suite=suite, size=bytes_of_disk)
    if as_json:
        print_json(asdict(made))
    else:
        click.echo(f"{made.name}: {values.human_size(made.file_size)}, {made.source}")


@image.command("import")
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
def import_image(
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
    from qsysd import values
    from qsysd.operations import image as operation

    made = operation.import_file(make_host(), file, name, user=user, cloud_init=cloud_init, kind=kind)
    if as_json:
        print_json(asdict(made))
    else:
        click.echo(f"{made.name}: {values.human_size(made.file_size)}, {made.source}")


@image.command("list")
@json_option
def list_images(as_json: bool) -> None:
    """Show the images of this host.

    \b
    Example:
      qsysd image list
    """
    from qsysd import values
    from qsysd.operations import image as operation

    found = operation.list_images(make_host())
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


@image.command()
@click.argument("name", shell_complete=complete.image)
@json_option
def info(name: str, as_json: bool) -> None:
    """Show an image, and the VMs that use it.

    \b
    Example:
      qsysd image info debian
    """
    from qsysd import values
    from qsysd.operations import image as operation

    found, users = operation.info(make_host(), name)
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


@image.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=complete.image)
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
def remove(names: Sequence[str], yes: bool, dry_run: bool) -> None:
    """Remove images; refused while a VM uses one.

    \b
    Example:
      qsysd image rm debian12 --yes
    """
    from qsysd.operations import image as operation

    host = make_host()
    for path in [host.images.require(name) for name in names]:
        click.echo(f"{path} {'would be' if dry_run else 'will be'} removed", err=True)
    if dry_run:
        return
    confirm("Remove?", yes=yes)
    operation.remove(host, names)
    for name in names:
        click.echo(f"{name}: removed")

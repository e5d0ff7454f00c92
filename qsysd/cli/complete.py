"""Shell completion of verbs and names, from directories that every user can list."""

from __future__ import annotations

import os
from collections.abc import Iterable

import click

from qsysd import paths
from qsysd.image_names import NAME, RECIPES, SUITES
from qsysd.names import in_order
from qsysd.paths import DROP_IN, is_name, vm_of_unit


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _defined(directory: str) -> set[str]:
    names = (entry.removesuffix(".yaml") for entry in _entries(directory) if entry.endswith(".yaml"))
    return set(filter(is_name, names))


def vm_names(scope: paths.Scope) -> set[str]:
    """Return the names of all VMs.

    Only root can list the definitions. For other users, such as those of sudo, the names are those of the
    units with a drop-in of qsysd.
    """
    if names := _defined(scope.definitions_dir):
        return names
    units = (
        entry.removesuffix(".d")
        for entry in _entries(scope.unit_dir)
        if entry.startswith("qemu-vm@") and os.path.exists(os.path.join(scope.unit_dir, entry, DROP_IN))
    )
    return set(filter(is_name, map(vm_of_unit, units)))


def image_names(scope: paths.Scope) -> set[str]:
    """Return the names of all images."""
    files = (entry for entry in _entries(scope.images_dir) if entry.endswith(".qcow2"))
    return {name for name in (file.removesuffix(".qcow2") for file in files) if NAME.fullmatch(name)}


def _matching(names: Iterable[str], incomplete: str, *, but: Iterable[str] = ()) -> list[str]:
    return in_order(name for name in set(names) - set(but) if name.startswith(incomplete))


def vm(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the VMs whose names have this prefix, without those on the command line."""
    return _matching(vm_names(paths.Scope()), incomplete, but=ctx.params.get("names") or ())


def image(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the images whose names have this prefix."""
    return _matching(image_names(paths.Scope()), incomplete, but=ctx.params.get("names") or ())


def image_or_recipe(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the images whose names have this prefix, and the recipes."""
    return _matching({*image_names(paths.Scope()), *RECIPES}, incomplete)


def network(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the networks whose names have this prefix, and `none`."""
    return _matching({*_defined(paths.Scope().networks_dir), "none"}, incomplete)


def recipe(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the recipes for images."""
    return _matching(RECIPES, incomplete)


def suite(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return Debian's suites."""
    return _matching(SUITES.values(), incomplete)


def accelerator(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the accelerators."""
    return _matching(("auto", "kvm", "tcg"), incomplete)


def verb(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the verbs whose names have this prefix."""
    group = ctx.find_root().command
    for word in ctx.params.get("words") or ():
        found = group.get_command(ctx, word) if isinstance(group, click.Group) else None
        if found is None:
            return []
        group = found
    names = group.list_commands(ctx) if isinstance(group, click.Group) else []
    return [name for name in names if name.startswith(incomplete)]

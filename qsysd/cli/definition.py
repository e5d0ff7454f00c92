"""The options of `create` that make up a definition."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from qsysd.cli import complete
from qsysd.config import options
from qsysd.errors import InvalidError

Document = dict[str, Any]

_OPTIONS = (
    click.option(
        "--image",
        shell_complete=complete.image_or_recipe,
        help="Base image; `debian` is built if it does not exist.",
    ),
    click.option("--memory", metavar="SIZE", help="Memory: 512M, 2G; a bare number is MiB."),
    click.option("--cpus", "--vcpus", metavar="N", help="Number of processors."),
    click.option("--cpu", metavar="MODEL", help="QEMU's CPU model."),
    click.option(
        "--disk",
        "disks",
        multiple=True,
        metavar="SIZE|KEY=VALUE,...",
        help="Disk: 20G, or size=20G,name=data; the first is the image's. Repeatable.",
    ),
    click.option(
        "--network",
        "networks",
        multiple=True,
        shell_complete=complete.network,
        metavar="NAME",
        help="Network of a NIC, or none. Repeatable.",
    ),
    click.option(
        "--nic",
        "nics",
        multiple=True,
        metavar="KEY=VALUE,...",
        help="NIC with a fixed MAC or address: name=lan,network=NAME,mac=MAC,address=IP. Repeatable.",
    ),
    click.option("--kernel", type=click.Path(), help="Kernel for direct boot."),
    click.option("--initrd", type=click.Path(), help="Initial RAM disk of the kernel."),
    click.option("--append", metavar="WORDS", help="Command line of the kernel."),
    click.option("--machine", metavar="TYPE", help="QEMU's machine type; pinned to its version at create."),
    click.option(
        "--accel",
        metavar="auto|kvm|tcg",
        shell_complete=complete.accelerator,
        help="Accelerator.",
    ),
    click.option("--user", metavar="USER", help="User for `qsysd ssh`; it is not created in the guest."),
    click.option(
        "--depends-on", multiple=True, metavar="VM", shell_complete=complete.vm, help="Start after this VM."
    ),
    click.option("--stop-timeout", metavar="TIME", help="Time for a graceful shutdown: 90s, 5min."),
    click.option(
        "--qemu-arg", "qemu_args", multiple=True, metavar="ARG", help="Argument for QEMU. Repeatable."
    ),
)

# options whose value is that of the key of the same name
_KEYS = (
    "image", "memory", "cpus", "cpu", "machine", "accel", "kernel", "initrd", "append", "user",
    "stop_timeout", "depends_on", "qemu_args",
)  # fmt: skip


def take_document(values: dict[str, Any]) -> Document:
    """Remove the definition's options from the values of all options; return them as a mapping."""
    document = {key: value for key in _KEYS if (value := values.pop(key)) not in (None, ())}
    document |= {key: list(value) for key, value in document.items() if isinstance(value, tuple)}
    if disks := values.pop("disks"):
        document["disks"] = [options.disk(text) for text in disks]
    networks, nics = values.pop("networks"), values.pop("nics")
    if "none" in networks and (nics or len(networks) > 1):
        raise InvalidError(
            "--network none and other NICs exclude each other", hint="leave out --network none"
        )
    if networks or nics:
        document["nics"] = [{"network": name} for name in networks if name != "none"]
        document["nics"] += [options.nic(text) for text in nics]
    return document


def definition_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a definition to a verb, which receives them as one argument, `document`."""

    @functools.wraps(function)
    def with_document(**values: object) -> None:
        function(document=take_document(values), **values)

    return functools.reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), with_document)

"""The VMs that a verb works on."""

from __future__ import annotations

from collections.abc import Sequence

from qsysd.errors import InvalidError
from qsysd.host.context import Host


def resolve(host: Host, names: Sequence[str] | None) -> list[str]:
    """Return the named VMs, each once, without checking that they exist; None means all VMs of this host.

    Raise InvalidError for an empty list.
    """
    if names is None:
        return host.store.names()
    if not names:
        raise InvalidError("missing VM", hint="qsysd list shows the VMs")
    return list(dict.fromkeys(names))


def still_existing(host: Host, names: Sequence[str] | None, vms: Sequence[str]) -> list[str]:
    """Return the VMs that were resolved from `names`, with their locks held.

    Of all VMs, those are left out that another command has deleted before their locks were free.
    """
    return list(vms) if names is not None else [name for name in vms if host.store.exists(name)]

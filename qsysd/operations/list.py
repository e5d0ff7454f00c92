"""list: apart from the other queries, so that it imports little."""

from __future__ import annotations

from collections.abc import Sequence

from qsysd.host.context import Host
from qsysd.host.listing import ListedVM, listed


def list_vms(host: Host, names: Sequence[str] | None = None) -> list[ListedVM]:
    """Return the named VMs, or all VMs of this host. Raise NotFoundError for an unknown name."""
    return listed(host, names)

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

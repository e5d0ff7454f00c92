"""States and values of VMs as text, for `list` and `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsysd.host.listing import ListedVM


def unit_state(vm: ListedVM) -> str:
    """Return systemd's state, with the substate where it differs in meaning."""
    return vm.active if vm.sub in ("running", "dead", "failed") else f"{vm.active} ({vm.sub})"


def with_pending(value: int | None, pending: int | None, unit: str = "") -> str:
    """Return the value in use, with that of the next start: `1024 MiB (2048 MiB pending)`."""
    if not value:
        return "-"
    return f"{value}{unit}" + (f" ({pending}{unit} pending)" if pending else "")

"""Repair what killed commands left, by the verb that was killed.

Every changing command, and each host boot, begins with it. Each VM is repaired by itself: one that
cannot be repaired keeps its intent and is named, and the others are repaired nevertheless.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from qsysd.errors import QsysdError
from qsysd.files import SyncedTogether
from qsysd.host import intents, locks
from qsysd.host.context import Host
from qsysd.host.intents import Intent
from qsysd.host.removal import remove_everything
from qsysd.host.unit_jobs import reload_dhcp


class Repair(NamedTuple):
    """How what a killed verb left is repaired. result: what it comes to, for people."""

    function: Callable[[Host, str], None]
    result: str


_REMOVE = Repair(remove_everything, "what it left has been removed")

# (kind, verb) → its repair. An intent that is not in the table is of another version of qsysd: it is left
# alone, and `doctor` reports it.
REPAIRS: dict[tuple[str, str], Repair] = {
    ("vm", "create"): _REMOVE,
    ("vm", "delete"): _REMOVE,
}


def is_known(intent: Intent) -> bool:
    """Return whether this version of qsysd can repair what an intent is for."""
    return (intent.kind, intent.verb) in REPAIRS


class Recovered(NamedTuple):
    """An intent whose command was killed. error: what prevents its repair; the intent then stays."""

    intent: Intent
    error: Exception | None = None


def as_error(error: Exception) -> QsysdError:
    """Return an error as one of qsysd's."""
    return error if isinstance(error, QsysdError) else QsysdError(f"{type(error).__name__}: {error}")


def recover(host: Host) -> list[Recovered]:
    """Repair what killed commands left, and tell it; return what was found.

    A VM whose lock is held belongs to a command that is still at work, and is left to it.
    """
    found = [result for intent in intents.pending(host.scope) if (result := _recovered(host, intent))]
    for intent, error in found:
        if error:
            host.progress(
                f"{intent.name}: the {intent.verb} that was killed cannot be repaired yet: "
                f"{as_error(error).message}"
            )
        else:
            repaired = REPAIRS[intent.kind, intent.verb].result
            host.progress(f"{intent.name}: a {intent.verb} was killed; {repaired}")
    if any(not result.error for result in found):
        _reload_all_dhcp(host)
    if os.path.isdir(host.scope.intents_dir):
        try:
            host.images.remove_abandoned()
        except (QsysdError, OSError) as error:
            host.progress(f"warning: images that were not completed: {error}")
    return found


def _recovered(host: Host, intent: Intent) -> Recovered | None:
    """Repair one VM; return None if there is nothing to repair, or not by this version."""
    if not is_known(intent):
        return None
    try:
        with locks.lock_if_free(host, intent.name) as free:
            # With the lock held, the intent may not exist any more: its command has just ended well.
            if not free or not os.path.lexists(intent.path):
                return None
            with SyncedTogether():
                REPAIRS[intent.kind, intent.verb].function(host, intent.name)
            intents.end(intent)
    except Exception as error:  # whatever a broken VM can raise: it must not block the others
        return Recovered(intent, error)
    return Recovered(intent)


def _reload_all_dhcp(host: Host) -> None:
    """Let dnsmasq drop entries that a killed command removed without telling it."""
    for name in host.store.network_names():
        try:
            reload_dhcp(host, name)
        except QsysdError as error:
            host.progress(f"warning: {error.message}")

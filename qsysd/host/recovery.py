"""Recover the changes of killed commands, by their verbs.

Every changing command does so first, and so does each host boot. If a VM cannot be repaired, its intent is
kept and reported, and other VMs are repaired.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from qsysd.errors import QsysdError
from qsysd.files import SyncedTogether
from qsysd.host import intents, locks
from qsysd.host.context import Host
from qsysd.host.intents import Intent
from qsysd.host.removal import remove_everything
from qsysd.host.unit_jobs import reload_dhcp


@dataclass(frozen=True)
class Repair:
    """The repair after a killed verb. result: its description in messages."""

    function: Callable[[Host, str], None]
    result: str


_REMOVE = Repair(remove_everything, "the VM was removed")

# (kind, verb) → its repair. Intents that are not in the table were written by another version of qsysd: they
# are ignored here and reported by `doctor`.
REPAIRS: dict[tuple[str, str], Repair] = {
    ("vm", "create"): _REMOVE,
    ("vm", "delete"): _REMOVE,
}


def is_known(intent: Intent) -> bool:
    """Return whether this version of qsysd can repair the VM of an intent."""
    return (intent.kind, intent.verb) in REPAIRS


@dataclass(frozen=True)
class Recovered:
    """An intent whose command was killed. error: what prevented the repair; the intent is kept then."""

    intent: Intent
    error: Exception | None = None


def as_error(error: Exception) -> QsysdError:
    """Return an error as a QsysdError."""
    return error if isinstance(error, QsysdError) else QsysdError(f"{type(error).__name__}: {error}")


def recover(host: Host) -> list[Recovered]:
    """Recover the changes of killed commands, and report it; return the intents that were found.

    Intents of VMs that are locked are ignored: their commands are still running.
    """
    found = [result for intent in intents.pending(host.scope) if (result := _recovered(host, intent))]
    for result in found:
        intent = result.intent
        if result.error:
            host.progress(
                f"{intent.name}: the {intent.verb} that was killed cannot be repaired yet: "
                f"{as_error(result.error).message}"
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
    """Repair one VM; return None if this is not necessary, or not possible with this version."""
    if not is_known(intent):
        return None
    try:
        with locks.lock_if_free(host, intent.name) as free:
            # The command may have completed before the lock was taken.
            if not free or not os.path.lexists(intent.path):
                return None
            with SyncedTogether():
                REPAIRS[intent.kind, intent.verb].function(host, intent.name)
            intents.end(intent)
    except Exception as error:  # no error of one VM may prevent the recovery of others
        return Recovered(intent, error)
    return Recovered(intent)


def _reload_all_dhcp(host: Host) -> None:
    """Reload dnsmasq: a killed command may have removed entries without doing so."""
    for name in host.store.network_names():
        try:
            reload_dhcp(host, name)
        except QsysdError as error:
            host.progress(f"warning: {error.message}")

"""recover: complete or undo the changes of killed commands."""

from __future__ import annotations

from dataclasses import dataclass

from qsysd.errors import QsysdError
from qsysd.host import recovery
from qsysd.host.context import Host


@dataclass(frozen=True)
class Recovered:
    """A change whose command was killed. error: what prevented its repair, None if it was repaired."""

    name: str
    verb: str
    error: QsysdError | None


def recover(host: Host) -> list[Recovered]:
    """Complete or undo the changes of killed commands; return the changes that were found.

    If a VM cannot be repaired, the others are.
    """
    host.require_root()
    return [
        Recovered(
            result.intent.name, result.intent.verb, recovery.as_error(result.error) if result.error else None
        )
        for result in recovery.recover(host)
    ]

"""recover: repair what killed commands left."""

from __future__ import annotations

from dataclasses import dataclass

from qsysd.errors import QsysdError
from qsysd.host import recovery
from qsysd.host.context import Host


@dataclass(frozen=True)
class Recovered:
    """A change whose command was killed. error: what prevents its repair; without one it is repaired."""

    name: str
    verb: str
    error: QsysdError | None


def recover(host: Host) -> list[Recovered]:
    """Repair what killed commands left; return what was found.

    A VM that cannot be repaired keeps no other from it.
    """
    host.require_root()
    return [
        Recovered(intent.name, intent.verb, recovery.as_error(error) if error else None)
        for intent, error in recovery.recover(host)
    ]

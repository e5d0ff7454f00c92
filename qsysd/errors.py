"""Every error that qsysd raises on purpose.

    QsysdError              1  failed
     ├─ InvalidError        2  usage, or a definition that is not valid
     ├─ NotFoundError       3  no such VM, image or network
     ├─ ExistsError         4  the name is taken
     ├─ StateError          5  not possible in the state it is in
     ├─ TimeoutExpired      6  a deadline passed
     └─ HostError           7  a needed part of the host is missing

The number is the exit status of the command. An error says what failed, on which VM, why (the
underlying tool's own last words), and in `hint` what to do next. `to_dict` and `from_dict` carry
an error over a wire without losing its kind.

This module imports nothing of qsysd: the helper that a unit calls at each start begins here.
"""

from __future__ import annotations


class QsysdError(Exception):
    """Something failed; `code` is the exit status that a command ends with."""

    code = 1

    def __init__(self, message: str, *, hint: str | None = None, code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def to_dict(self) -> dict[str, str | int | None]:
        """Return the error as plain values: `kind` (the nearest of KINDS), `message`, `hint`, `code`."""
        kinds = (kind.__name__ for kind in type(self).__mro__)
        return {
            "kind": next(kind for kind in kinds if kind in KINDS),
            "message": self.message,
            "hint": self.hint,
            "code": self.code,
        }

    @staticmethod
    def from_dict(data: dict[str, str | int | None]) -> QsysdError:
        """Return the error that `to_dict` described; an unknown kind becomes a plain QsysdError."""
        kind = KINDS.get(str(data.get("kind")), QsysdError)
        hint = data.get("hint")
        return kind(
            str(data.get("message", "unknown error")),
            hint=None if hint is None else str(hint),
            code=int(data.get("code") or kind.code),
        )


class InvalidError(QsysdError):
    """The command line or a definition is not valid."""

    code = 2


class NotFoundError(QsysdError):
    """The named VM, image or network does not exist."""

    code = 3


class ExistsError(QsysdError):
    """The name is already taken."""

    code = 4


class StateError(QsysdError):
    """The VM, image or network is in a state in which this is not possible."""

    code = 5


class TimeoutExpired(QsysdError):
    """A deadline passed before the wanted state was reached."""

    code = 6


class HostError(QsysdError):
    """A part of the host that is needed is missing or does not work."""

    code = 7


KINDS: dict[str, type[QsysdError]] = {
    kind.__name__: kind
    for kind in (
        QsysdError,
        InvalidError,
        NotFoundError,
        ExistsError,
        StateError,
        TimeoutExpired,
        HostError,
    )
}

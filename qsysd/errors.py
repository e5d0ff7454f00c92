"""The errors that qsysd raises.

    QsysdError              1  failed
     ├─ InvalidError        2  usage, or a definition that is not valid
     ├─ NotFoundError       3  the VM, image or network does not exist
     ├─ ExistsError         4  the name is already used
     ├─ StateError          5  not possible in this state
     ├─ TimeoutExpired      6  a timeout passed
     └─ HostError           7  a required part of the host is missing

The number is the exit status of the command. The message contains what failed, on which VM, and why (the
error message of the underlying tool); `hint` is what to do next. `to_dict` and `from_dict` convert an error
to plain values and back, for a reply that travels to another process.
"""

from __future__ import annotations

# The hint of every error that privileges would prevent.
RUN_AS_ROOT = "run the command with sudo, or as root"


class QsysdError(Exception):
    """Something failed. code: the exit status of the command."""

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
        """Return the error from the values of `to_dict`; an unknown kind becomes a QsysdError."""
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
    """The name is already used."""

    code = 4


class StateError(QsysdError):
    """The VM, image or network is in a state in which this is not possible."""

    code = 5


class TimeoutExpired(QsysdError):
    """A timeout passed before the requested state was reached."""

    code = 6


class HostError(QsysdError):
    """A required part of the host is missing or does not work."""

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

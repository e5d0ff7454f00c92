"""Reports of the progress of an operation."""

from __future__ import annotations


class Progress:
    """The receiver of an operation's progress and warnings; this class ignores them."""

    def __call__(self, line: str) -> None:
        """Report a line of progress or a warning."""

    def waiting(self, what: str, seconds: float = 0.0, state: str = "", detail: str = "") -> None:
        """Report a wait; called repeatedly, and with "" at its end.

        seconds: since its start. state: its progress. detail: a text that changes often.
        """

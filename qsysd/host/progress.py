"""Reports of what an operation does while it works."""

from __future__ import annotations


class Progress:
    """The receiver of an operation's progress and warnings; this one drops them."""

    def __call__(self, line: str) -> None:
        """Report a line of progress or a warning."""

    def waiting(self, what: str, seconds: float = 0.0, state: str = "", detail: str = "") -> None:
        """Report a wait that continues; "" ends it. Called again and again.

        seconds: of waiting so far; state: how far it has come; detail: a text that changes quickly.
        """

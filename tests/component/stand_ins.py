"""Programs of a test's own, first in PATH, that record how they are called."""

from __future__ import annotations

from pathlib import Path

RECORD = """\
#!/bin/sh
# One write, as several of them may run at once.
printf '%s\\0' "$@" '
' >>'{log}'
{body}
"""


class StandIns:
    """A directory of stand-ins."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def add(self, program: str, body: str = "") -> None:
        """Put a program in place; `body` is the rest of its shell script."""
        path = self.directory / program
        path.write_text(RECORD.format(log=self._log(program), body=body), encoding="utf-8")
        path.chmod(0o755)

    def calls(self, program: str) -> list[list[str]]:
        """Return the arguments of each call of a program, in order."""
        try:
            text = self._log(program).read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return []
        return [call.split("\0")[:-1] for call in text.split("\n\0")[:-1]]

    def _log(self, program: str) -> Path:
        return self.directory / f"{program}.log"

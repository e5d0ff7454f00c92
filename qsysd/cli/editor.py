"""The caller's editor."""

from __future__ import annotations

import os
import shlex
import tempfile

from qsysd import files, process
from qsysd.errors import HostError, QsysdError
from qsysd.runtime import spawn


def edit_text(text: str, name: str) -> str:
    """Run the caller's editor on a text and return the result. Raise QsysdError if the editor fails."""
    editor = (os.environ.get("VISUAL") or os.environ.get("EDITOR") or "").strip()
    if not editor:
        editor = next((found for found in ("sensible-editor", "nano", "vi") if spawn.find(found)), "vi")
    try:
        words = shlex.split(editor)
    except ValueError as error:
        raise QsysdError(f"the editor {editor!r} is not a command: {error}", hint="EDITOR=nano") from error
    if spawn.find(words[0]) is None:
        raise HostError(
            f"the editor {words[0]!r} is not installed",
            hint="apt install nano, or set EDITOR to an installed editor",
        )
    with tempfile.NamedTemporaryFile("w+", prefix=f"qsysd-{name}-", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        status = process.foreground([*words, file.name])
        if status:
            raise QsysdError(
                f"the editor ended with status {status}; nothing was changed", hint=f"EDITOR is {editor!r}"
            )
        # Some editors replace the file by a new one.
        changed = files.read_text(file.name)
        if changed is None:
            raise QsysdError(f"the editor removed {file.name}; nothing was changed")
        return changed

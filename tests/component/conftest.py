"""What the tests of real parts share: a host of their own in a temporary directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsysd.paths import Scope


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scope:
    """Return the scope below the current directory: its sockets' paths are short wherever that is."""
    monkeypatch.chdir(tmp_path)
    return Scope("")

"""`pytest tests/golden --regenerate` writes the expected files again; read the difference afterwards."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the expected files instead of comparing with them."""
    parser.addoption("--regenerate", action="store_true", help="write the golden files again")

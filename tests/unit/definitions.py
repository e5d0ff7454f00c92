"""Definitions for tests: what is valid, and the errors of what is not."""

from __future__ import annotations

from typing import Any

import pytest

from qsysd.config import load
from qsysd.errors import InvalidError
from qsysd.model.vm import VMSpec

START = "name: web1\nimage: debian\n"


def parse(text: str, **options: Any) -> VMSpec:
    """Return the spec of a definition in the file web1.yaml."""
    return load.parse_vm(text, "web1.yaml", **options)


def problems(text: str, **options: Any) -> list[str]:
    """Return the lines of the error that a definition gives."""
    with pytest.raises(InvalidError) as caught:
        parse(text, **options)
    assert caught.value.code == 2
    return caught.value.message.splitlines()


def problem(lines: str, **options: Any) -> str:
    """Return the one error of a definition with these lines, from line 3 on, that is valid otherwise."""
    (message,) = problems(START + lines, **options)
    return message


def valid(lines: str) -> VMSpec:
    """Return the spec of a definition with these lines, from line 3 on."""
    return parse(START + lines)

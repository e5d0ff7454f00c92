"""A request: the name of an operation, its arguments as plain values, and an id."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Plain: TypeAlias = "bool | int | float | str | Sequence[Plain] | Mapping[str, Plain] | None"


def new_id() -> str:
    """Return an id for a request: 16 hexadecimal digits, at random."""
    return os.urandom(8).hex()


@dataclass(frozen=True)
class Request:
    """An operation that is asked for. operation: its name in the registry, such as `vm.start`."""

    operation: str
    arguments: Mapping[str, Plain]
    id: str = field(default_factory=new_id)

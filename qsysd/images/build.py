"""Build images from recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qsysd.errors import InvalidError, QsysdError


@dataclass(frozen=True)
class Plan:
    """What to build. size: bytes, virtual."""

    recipe: str
    suite: str
    size: int


def plan(recipe: str, *, suite: str | None, size: int | None) -> Plan:
    """Return what to build. Raises InvalidError for an unknown recipe or suite."""
    if recipe != "debian":
        raise InvalidError(f"there is no recipe {recipe}", hint="qsysd image build debian")
    return Plan(recipe, suite or "bookworm", size or 2 * 1024**3)


def build(plan: Plan, directory: str, target: str, progress: Callable[[str], None]) -> dict[str, object]:
    """Build the qcow2 file `target`; return what the note beside the image says about it."""
    raise QsysdError(f"the recipe {plan.recipe} is not ready yet")

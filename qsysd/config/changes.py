"""What differs between two specs of a VM, and when each difference takes effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from qsysd.model.field import Change, Declaration, Inline, ListOf, declarations, keys


class Changed(NamedTuple):
    """A field with another value. path: as in the errors of a definition, for example `disks[0].size`.

    removed: the new definition has no value for it.
    """

    path: str
    change: Change
    removed: bool = False

    @property
    def is_refused(self) -> bool:
        """Return whether an existing VM cannot take on this change."""
        return self.change is Change.NEVER or (self.change is Change.REMOVE and not self.removed)


def changed_fields(old: Any, new: Any) -> list[Changed]:
    """Return the fields that differ between two specs of one model, in the order of a definition."""
    return list(_changed(old, new, ""))


def _changed(old: Any, new: Any, path: str) -> Iterator[Changed]:
    for name, declared in declarations(type(new)).items():
        was, becomes = getattr(old, name), getattr(new, name)
        if was == becomes:
            continue
        kind = declared.kind
        if isinstance(kind, Inline):
            yield from _inline_changed(was, becomes, kind.model, path)
        elif isinstance(kind, ListOf) and isinstance(kind.item, type):
            yield from _items_changed(was, becomes, declared, f"{path}{declared.key}")
        else:
            yield Changed(f"{path}{declared.key}", declared.change, becomes in (None, "", ()))


def _inline_changed(old: Any, new: Any, model: type, path: str) -> Iterator[Changed]:
    """Yield the fields of a part that differ, or its first field if it has appeared or disappeared."""
    if old is not None and new is not None:
        yield from _changed(old, new, path)
    else:
        first = next(iter(declarations(model).values()))
        yield Changed(f"{path}{keys(model)[0]}", first.change, new is None)


def _items_changed(
    old: tuple[Any, ...], new: tuple[Any, ...], declared: Declaration, path: str
) -> Iterator[Changed]:
    """Yield the list itself if items were added, removed, renamed or reordered, and the fields of others."""
    before = {item.name: item for item in old}
    if [item.name for item in old] != [item.name for item in new]:
        yield Changed(path, declared.change, not new)
    for index, item in enumerate(new):
        if item.name in before:
            yield from _changed(before[item.name], item, f"{path}[{index}].")

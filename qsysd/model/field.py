"""The declaration of a field, from which everything else about it follows.

A field of a model is declared once: its parser, its default, its help, and when a change takes effect. From
that, `config` reads and writes definitions, checks option lists of the command line, produces the JSON
Schema and decides what an edit may change; the tables of docs/definition.md are generated from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from typing import Any

from qsysd.model.parsers import Parser

_KEY = "qsysd"
# By model: deriving them takes half of the time in which a definition is read (480 against 250 µs).
_DECLARATIONS: dict[type, dict[str, Declaration]] = {}


class Change(StrEnum):
    """When a change of a field takes effect in a VM that exists."""

    LIVE = "live"
    RESTART = "restart"
    FIRST_BOOT = "first boot"
    REMOVE = "only removed"
    NEVER = "never"


@dataclasses.dataclass(frozen=True)
class ListOf:
    """A list of values, or of mappings that a model describes; such a model has the field `name`."""

    item: Parser[Any] | type


@dataclasses.dataclass(frozen=True)
class Inline:
    """An optional part whose keys are among those of its owner; it exists if its first key does."""

    model: type


Kind = Parser[Any] | ListOf | Inline


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What `field` was told about a field, with the field's name and its built-in default.

    key: the key in a definition, "" for an inline part, whose own keys are used. required: a definition
    without the key is not valid. default: dataclasses.MISSING for a field without one.
    """

    name: str
    key: str
    kind: Kind
    help: str
    change: Change
    default: Any
    default_help: str
    absent: Callable[[Collection[str]], Any] | None
    numbered: str
    bare: bool
    overrides: tuple[type, str] | None

    @property
    def required(self) -> bool:
        """Return whether a definition without the key is not valid."""
        return self.default is dataclasses.MISSING and not self.numbered and self.absent is None


def field(
    kind: Kind,
    *,
    help: str = "",  # noqa: A002  # the name that click and argparse use
    default: Any = dataclasses.MISSING,
    default_help: str = "",
    change: Change = Change.RESTART,
    key: str | None = None,
    absent: Callable[[Collection[str]], Any] | None = None,
    numbered: str = "",
    bare: bool = False,
) -> Any:
    """Declare a field of a model.

    kind: how its value is read and written. help: one line for documentation and editors, in Markdown.
    default: the built-in default; without one the key is required. default_help: what documentation shows
    instead of `default`. change: when a change takes effect. key: the key in a definition if it is not the
    field's name. absent: returns, for the keys that a definition has, what it means without this one, as
    it would be written there. numbered: an item of a list that does not give the value gets this text and
    the first free number. bare: an option list of the command line can give this field without its key.
    """
    declared = {
        "key": key,
        "kind": kind,
        "help": help,
        "change": change,
        "default_help": default_help,
        "absent": absent,
        "numbered": numbered,
        "bare": bare,
        "overrides": None,
    }
    return dataclasses.field(default=default, metadata={_KEY: declared})


def default_of(owner: type, name: str) -> Any:
    """Declare a field of the host's defaults: its value replaces the built-in default of a model's field."""
    original = declarations(owner)[name]
    declared = {**_metadata(owner, name), "overrides": (owner, name), "absent": None}
    return dataclasses.field(default=original.default, metadata={_KEY: declared})


def _metadata(model: type, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(
        field.metadata[_KEY] for field in dataclasses.fields(model) if field.name == name
    )
    return found


def declarations(model: type) -> dict[str, Declaration]:
    """Return the declarations of a model's fields by their names, in the order of a definition."""
    if model not in _DECLARATIONS:
        _DECLARATIONS[model] = {each.name: _declaration(each) for each in dataclasses.fields(model)}
    return _DECLARATIONS[model]


def _declaration(field: dataclasses.Field[Any]) -> Declaration:
    declared = dict(field.metadata[_KEY])
    key = declared.pop("key")
    if key is None:
        key = "" if isinstance(declared["kind"], Inline) else field.name
    return Declaration(name=field.name, key=key, default=field.default, **declared)


def parts(model: type) -> list[type]:
    """Return the models of a model's parts: the items of its lists, and its inline parts."""
    found = []
    for declared in declarations(model).values():
        kind = declared.kind
        part = kind.item if isinstance(kind, ListOf) else kind.model if isinstance(kind, Inline) else None
        if isinstance(part, type):
            found += [part, *parts(part)]
    return found


def keys(model: type) -> tuple[str, ...]:
    """Return the keys that a definition of a model can have, those of inline parts included."""
    found: list[str] = []
    for declared in declarations(model).values():
        found += keys(declared.kind.model) if isinstance(declared.kind, Inline) else [declared.key]
    return tuple(found)

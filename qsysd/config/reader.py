"""Reads a model from a tree of nodes by the model's declarations, and collects all problems.

This module contains no key of a definition: the keys are in `model`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, TypeVar

from qsysd import image_names
from qsysd.config.nodes import Node, PlainNode
from qsysd.errors import InvalidError
from qsysd.model.field import Declaration, Inline, Kind, ListOf, declarations, keys
from qsysd.model.parsers import Parser
from qsysd.names import closest

T = TypeVar("T")


class Problems:
    """What is not valid in a definition, collected to be reported at once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: list[tuple[int, str]] = []
        self.hint = f"correct {source} (keys: man qsysd.yaml)" if source else "qsysd create --help"

    def add(self, node: Node, path: str, message: str) -> None:
        """Record a problem at a node."""
        where = f"{self.source}:{node.line}: " if self.source and node.line else ""
        self.lines.append((node.line, where + (f"{path}: " if path else "") + message))

    def check(self) -> None:
        """Raise InvalidError with all problems, in the order of the file, if there are any."""
        if self.lines:
            raise InvalidError("\n".join(text for _, text in sorted(self.lines)), hint=self.hint)


class Section:
    """A mapping of a definition by its keys. items: the values of known keys that are not empty."""

    def __init__(self, node: Node, path: str, problems: Problems, known: Iterable[str]) -> None:
        self.node = node
        self.path = path
        self.problems = problems
        self.items: dict[str, Node] = {}
        entries = node.entries()
        self.is_mapping = entries is not None
        if entries is None:
            problems.add(node, path, "must be a mapping of keys to values")
        seen: set[str] = set()
        for key_node, value in entries or ():
            key = self._key(key_node, known, seen)
            if key and not value.is_null():
                self.items[key] = value

    def _key(self, node: Node, known: Iterable[str], seen: set[str]) -> str:
        """Return a key, "" for one that is a problem."""
        try:
            key = node.scalar().text
        except ValueError:
            self.problems.add(node, self.path, "a key must be a single value, not a list or a mapping")
            return ""
        if key not in known:
            self.problems.add(node, self.path, unknown_key(key, known))
            return ""
        if key in seen:
            self.problems.add(node, self.path, f"duplicate key {key!r}")
            return ""
        seen.add(key)
        return key

    def add(self, key: str, message: str) -> None:
        """Record a problem with the value of a key, or with the whole section for one that it lacks."""
        self.problems.add(self.items.get(key, self.node), self.where(key), message)

    def where(self, key: str) -> str:
        """Return the path of a key."""
        return f"{self.path}.{key}" if self.path and key else key or self.path


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for an unknown key."""
    key = key if len(key) <= 40 else f"{key[:40]}…"
    near = closest(key, known)
    return f"unknown key {key!r}" + (f"; did you mean {near!r}?" if near else "")


class Reader:
    """Reads models from nodes.

    defaults: what replaces the built-in defaults, by model and field. A value that is not valid is a
    problem, and the default is used for it, so that the rest can be checked too.
    """

    def __init__(self, problems: Problems, defaults: Mapping[tuple[type, str], Any]) -> None:
        self.problems = problems
        self.defaults = defaults

    def section(self, node: Node, path: str, model: type) -> Section:
        """Return a mapping by the keys of a model."""
        return Section(node, path, self.problems, keys(model))

    def read(self, section: Section, model: type[T]) -> T:
        """Return a model from a section with its keys."""
        found = {
            name: self._inline(section, declared.kind)
            if isinstance(declared.kind, Inline)
            else self._value(section, model, declared)
            for name, declared in declarations(model).items()
        }
        return model(**found)

    def _inline(self, section: Section, kind: Inline) -> Any:
        first, *others = keys(kind.model)
        if first in section.items:
            return self.read(section, kind.model)
        for key in others:
            if key in section.items:
                section.add(key, f"needs {first!r} as well")
        return None

    def _value(self, section: Section, model: type, declared: Declaration) -> Any:
        default = self.defaults.get((model, declared.name), declared.default)
        if default is dataclasses.MISSING:
            default = ""
        node = section.items.get(declared.key)
        if node is None and declared.absent is not None:
            node = PlainNode(declared.absent(section.items.keys()))
        if node is None:
            if declared.required and section.is_mapping:
                section.add("", f"the key {declared.key!r} is missing")
            return default
        try:
            return self._parse(node, section.where(declared.key), declared.kind)
        except ValueError as error:
            section.add(declared.key, str(error))
            if isinstance(error, image_names.RefusedName):
                self.problems.hint = error.hint
            return () if isinstance(declared.kind, ListOf) else default

    def _parse(self, node: Node, path: str, kind: Kind) -> Any:
        """Return the value of a node. Raise ValueError with a message for the user."""
        if isinstance(kind, Parser):
            return kind.read(node.scalar())
        assert isinstance(kind, ListOf)
        items = node.items()
        if items is None:
            raise ValueError("must be a list")
        paths = [f"{path}[{index}]" for index in range(len(items))]
        if isinstance(kind.item, Parser):
            return tuple(self._items(zip(items, paths, strict=True), kind.item))
        model = kind.item
        return named(
            tuple(
                self.read(self.section(item, where, model), model)
                for item, where in zip(items, paths, strict=True)
            )
        )

    def _items(self, items: Iterable[tuple[Node, str]], parser: Parser[Any]) -> Iterable[Any]:
        for item, path in items:
            try:
                yield parser.read(item.scalar())
            except ValueError as error:
                self.problems.add(item, path, str(error))


def named(items: tuple[T, ...]) -> tuple[T, ...]:
    """Return the items of a list, with a name for those that have none: `disk0` for the first disk.

    A number that another item has in its name is skipped, so that adding an item without a name never
    makes a definition invalid.
    """
    for declared in declarations(type(items[0])).values() if items else ():
        if declared.numbered:
            taken = {getattr(item, declared.name) for item in items}
            free = (text for number in count() if (text := f"{declared.numbered}{number}") not in taken)
            items = tuple(
                item
                if getattr(item, declared.name)
                else dataclasses.replace(item, **{declared.name: next(free)})  # type: ignore[type-var]
                for item in items
            )
    return items

"""Definitions → models: YAML or a plain mapping, the host's defaults, and what no single field can show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qsysd.config import checks
from qsysd.config.nodes import Node, PlainNode, YamlNode, compose, require
from qsysd.config.reader import Problems, Reader, Section
from qsysd.errors import InvalidError
from qsysd.model.defaults import Defaults
from qsysd.model.field import declarations
from qsysd.model.network import NetworkSpec
from qsysd.model.vm import VMSpec

Definition = str | Mapping[str, Any]


def parse_vm(
    definition: Definition, source: str, *, name: str | None = None, defaults: Defaults | None = None
) -> VMSpec:
    """Return the spec of a VM's definition.

    definition: YAML, or a plain mapping with the same keys. source: the file's name for messages, "" for a
    command line. name: the VM's name according to the file's name, if the two must agree. Keys that are
    missing come from `defaults`; `uuid`, `machine` and a NIC's `mac` are "" until create has chosen them.
    Raise InvalidError with all problems.
    """
    problems = Problems(source)
    reader = Reader(problems, _overrides(defaults or Defaults()))
    root = reader.section(_root(definition, source), "", VMSpec)
    spec = reader.read(root, VMSpec)
    _check_name(spec.name, root, name)
    checks.check_vm(spec, root)
    problems.check()
    return spec


def _root(definition: Definition, source: str) -> Node:
    return require(definition, source) if isinstance(definition, str) else PlainNode(definition)


def _overrides(defaults: Defaults) -> dict[tuple[type, str], Any]:
    """Return what a host's defaults replace: a value by model and field."""
    return {
        declared.overrides: getattr(defaults, name)
        for name, declared in declarations(Defaults).items()
        if declared.overrides
    }


def _check_name(name: str, root: Section, file: str | None) -> None:
    if file is not None and name and name != file:
        root.add("name", f"{name!r} is not the file's name, {file!r}")


def parse_network(definition: Definition, source: str, *, name: str | None = None) -> NetworkSpec:
    """Return the spec of a network's definition. Raise InvalidError with all problems."""
    problems = Problems(source)
    reader = Reader(problems, {})
    root = reader.section(_root(definition, source), "", NetworkSpec)
    spec = reader.read(root, NetworkSpec)
    _check_name(spec.name, root, name)
    problems.check()
    return spec


def parse_defaults(text: str, source: str) -> Defaults:
    """Return the host's defaults; a file of comments only is valid. Raise InvalidError."""
    node = compose(text, source)
    if node is None:
        return Defaults()
    problems = Problems(source)
    reader = Reader(problems, {})
    defaults = reader.read(reader.section(node, "", Defaults), Defaults)
    problems.check()
    return defaults


def load_plain(text: str, source: str) -> Any:
    """Return a definition as plain values; as in a spec, all but whole numbers, true and false is text."""
    return _plain(require(text, source), source, ())


def _plain(node: YamlNode, source: str, above: tuple[Any, ...]) -> Any:
    if node.node in above:
        raise InvalidError(f"{source}:{node.line}: a list or a mapping that contains itself")
    above = (*above, node.node)
    if node.node.id == "sequence":
        return [_plain(YamlNode(item), source, above) for item in node.node.value]
    if node.node.id == "mapping":
        return {str(key.value): _plain(YamlNode(value), source, above) for key, value in node.node.value}
    text = str(node.node.value)
    if node.is_null():
        return None
    if node.is_quoted():
        return text
    if re.fullmatch("0|[1-9][0-9]{0,18}", text):
        return int(text)
    return {"true": True, "false": False}.get(text, text)

"""The JSON Schema (2020-12) of definitions, for editors.

It is derived from the models. What no single value can show, such as a name that two devices have, is checked
only when a definition is read. A key without a value, and a number or a boolean in quotes, are refused,
though a definition may have them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from qsysd.model.defaults import Defaults
from qsysd.model.field import Declaration, Inline, ListOf, declarations, keys
from qsysd.model.network import NetworkSpec
from qsysd.model.parsers import Parser
from qsysd.model.vm import BOOT_KEYS, VMSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def vm() -> dict[str, Any]:
    """Return the schema of a VM's definition."""
    kinds = [{"required": [key]} for key in BOOT_KEYS]
    return {**_whole(VMSpec, "Definition of a VM"), "anyOf": kinds}


def network() -> dict[str, Any]:
    """Return the schema of a network's definition."""
    return _whole(NetworkSpec, "Definition of a network")


def defaults() -> dict[str, Any]:
    """Return the schema of a host's defaults, which can be an empty file."""
    schema = _whole(Defaults, "Defaults for new VMs")
    return {**schema, "type": ["object", "null"]}


def _whole(model: type, title: str) -> dict[str, Any]:
    return {"$schema": DIALECT, "title": f"qsysd: {title}", **_object(model)}


def _object(model: type) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    dependent: dict[str, list[str]] = {}
    for declared in declarations(model).values():
        if isinstance(declared.kind, Inline):
            first, *others = keys(declared.kind.model)
            properties |= _object(declared.kind.model)["properties"]
            dependent |= {key: [first] for key in others}
        else:
            properties[declared.key] = _property(declared)
            required += [declared.key] if declared.required else []
    found: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        found["required"] = required
    if dependent:
        found["dependentRequired"] = dependent
    return found


def _property(declared: Declaration) -> dict[str, Any]:
    kind = declared.kind
    if isinstance(kind, Parser):
        found: dict[str, Any] = dict(kind.schema)
    else:
        assert isinstance(kind, ListOf)
        item = kind.item.schema if isinstance(kind.item, Parser) else _object(kind.item)
        found = {"type": "array", "items": dict(item)}
    found["description"] = declared.help.replace("`", "")
    if isinstance(kind, Parser) and declared.default not in (dataclasses.MISSING, None, ""):
        found["default"] = kind.write(declared.default)
    return found

"""A validator for the part of JSON Schema (2020-12) that `qsysd schema` uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def _types(schema: Any) -> list[str]:
    return [schema] if isinstance(schema, str) else list(schema)


# Each keyword applies to values of one type only, and accepts all others.
KEYWORDS: dict[str, Callable[[Any, Any, Mapping[str, Any]], bool]] = {
    "type": lambda value, rule, _: any(TYPES[name](value) for name in _types(rule)),
    "enum": lambda value, rule, _: value in rule,
    "anyOf": lambda value, rule, _: any(is_valid(value, each) for each in rule),
    "not": lambda value, rule, _: not is_valid(value, rule),
    "pattern": lambda value, rule, _: not isinstance(value, str) or bool(re.search(rule, value)),
    "minimum": lambda value, rule, _: not TYPES["number"](value) or value >= rule,
    "exclusiveMinimum": lambda value, rule, _: not TYPES["number"](value) or value > rule,
    "maximum": lambda value, rule, _: not TYPES["number"](value) or value <= rule,
    "items": lambda value, rule, _: (
        not isinstance(value, list) or all(is_valid(item, rule) for item in value)
    ),
    "required": lambda value, rule, _: not isinstance(value, dict) or set(rule) <= set(value),
    "dependentRequired": lambda value, rule, _: (
        not isinstance(value, dict)
        or all(set(needed) <= set(value) for key, needed in rule.items() if key in value)
    ),
    "properties": lambda value, rule, _: (
        not isinstance(value, dict)
        or all(is_valid(value[key], each) for key, each in rule.items() if key in value)
    ),
    "additionalProperties": lambda value, rule, schema: (
        not isinstance(value, dict) or rule or set(value) <= set(schema["properties"])
    ),
}
ANNOTATIONS = {"$schema", "title", "description", "default"}


def is_valid(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether a value is valid against a schema. Raise KeyError for an unknown keyword."""
    return all(
        KEYWORDS[keyword](value, rule, schema)
        for keyword, rule in schema.items()
        if keyword not in ANNOTATIONS
    )

"""The tree of a definition before it is checked: the same for YAML, with lines, and for a plain mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from qsysd.errors import InvalidError
from qsysd.model.parsers import Scalar

# No definition is like this, and libyaml overflows the stack on tens of thousands of levels.
_LENGTH_MAX = 64 * 1024
_LEVELS_MAX = 10_000
_LEVEL = re.compile(r"[\[{]|[-?]\s")


class Node(Protocol):
    """A value of a definition. line: counted from 1, 0 for a value that is not from a file."""

    @property
    def line(self) -> int:
        """Return the line in the file, 0 without a file."""

    def is_null(self) -> bool:
        """Return whether the value is empty."""

    def scalar(self) -> Scalar:
        """Return a single value. Raise ValueError for a list or a mapping."""

    def items(self) -> list[Node] | None:
        """Return the items of a list, None for anything else."""

    def entries(self) -> list[tuple[Node, Node]] | None:
        """Return the keys and values of a mapping in their order, None for anything else."""


class YamlNode:
    """A node of PyYAML."""

    def __init__(self, node: Any) -> None:
        self.node = node

    @property
    def line(self) -> int:
        """Return the line in the file."""
        return int(self.node.start_mark.line) + 1

    def is_null(self) -> bool:
        """Return whether the value is empty."""
        return bool(self.node.tag == "tag:yaml.org,2002:null")

    def is_quoted(self) -> bool:
        """Return whether the value is in quotes, or a block of text."""
        return bool(self.node.style)

    def scalar(self) -> Scalar:
        """Return a single value. Raise ValueError for a list or a mapping."""
        if self.node.id != "scalar":
            raise ValueError("must be a single value, not a list or a mapping")
        return Scalar(str(self.node.value), self.node.tag.rpartition(":")[2])

    def items(self) -> list[Node] | None:
        """Return the items of a list, None for anything else."""
        return [YamlNode(item) for item in self.node.value] if self.node.id == "sequence" else None

    def entries(self) -> list[tuple[Node, Node]] | None:
        """Return the keys and values of a mapping in their order, None for anything else."""
        if self.node.id != "mapping":
            return None
        return [(YamlNode(key), YamlNode(value)) for key, value in self.node.value]


class PlainNode:
    """A plain value: text, a number, true or false, None, a list or a mapping of those."""

    line = 0

    def __init__(self, value: Any) -> None:
        self.value = value

    def is_null(self) -> bool:
        """Return whether the value is None."""
        return self.value is None

    def scalar(self) -> Scalar:
        """Return a single value. Raise ValueError for a list or a mapping."""
        if self.value is None:
            return Scalar("", "null")
        if isinstance(self.value, bool):
            return Scalar("true" if self.value else "false", "bool")
        if isinstance(self.value, int | float):
            return Scalar(str(self.value), type(self.value).__name__)
        if isinstance(self.value, str):
            try:
                self.value.encode()
            except UnicodeEncodeError:
                raise ValueError("not UTF-8 text") from None
            return Scalar(str(self.value))
        raise ValueError("must be a single value, not a list or a mapping")

    def items(self) -> list[Node] | None:
        """Return the items of a list, None for anything else."""
        if isinstance(self.value, Sequence) and not isinstance(self.value, str | bytes):
            return [PlainNode(item) for item in self.value]
        return None

    def entries(self) -> list[tuple[Node, Node]] | None:
        """Return the keys and values of a mapping in their order, None for anything else."""
        if isinstance(self.value, Mapping):
            return [(PlainNode(key), PlainNode(value)) for key, value in self.value.items()]
        return None


def yaml_library() -> Any:
    """Return PyYAML, which is imported only when a definition is read or written."""
    import yaml

    return yaml


def is_too_large(text: str) -> bool:
    """Return whether `compose` refuses a text without parsing it."""
    return len(text) > _LENGTH_MAX or len(_LEVEL.findall(text)) > _LEVELS_MAX


def compose(text: str, source: str) -> YamlNode | None:
    """Return the root node of a YAML text, None for an empty one. Raise InvalidError.

    source: the file's name for messages.
    """
    yaml = yaml_library()
    hint = f"correct {source}" if source else None
    if is_too_large(text):
        raise InvalidError(f"{source}: too long for a definition, or too deeply nested", hint=hint)
    try:
        node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except UnicodeError as error:
        raise InvalidError(f"{source}: not UTF-8 text", hint=hint) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise InvalidError(f"{source}{line}: not valid YAML: {problem}", hint=hint) from error
    if node is None:
        return None
    root = YamlNode(node)
    return None if root.is_null() and not node.value else root


def require(text: str, source: str) -> YamlNode:
    """Return the root node of a YAML text. Raise InvalidError, also for an empty text."""
    node = compose(text, source)
    if node is None:
        raise InvalidError(
            f"{source}: the file is empty",
            hint="examples: /usr/share/doc/qsysd/examples; keys: man qsysd.yaml",
        )
    return node

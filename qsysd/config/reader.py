"""YAML → defaults → validation → spec, and back.

All errors of a file are collected and raised together, each with file, line and path. Scalars are
judged by the text that stands in the file and not by what YAML 1.1 would make of it, so that `no`,
`0123` and `52:54:00:12:34:56` either mean what they say or are refused with the way to write them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from qsysd import image_names, values
from qsysd.errors import InvalidError
from qsysd.names import closest
from qsysd.paths import DEVICE_NAME_RULE, NAME_RULE, is_device_name, is_name

T = TypeVar("T")

MEMORY_MINIMUM_MIB = 16
MEMORY_MARGIN_MIB = 256  # what QEMU takes besides the guest's memory
CPUS_MAXIMUM = 1024
# What may stand in a path that is handed to systemd and QEMU: nothing that either gives a meaning to.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/+@=~-]+")
_MACHINE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+,=-]{0,255}")
RESERVED_DEVICE_NAMES = frozenset(("console", "rng0", "seed"))
_NOT_TEXT = re.compile(f"[{values.NOT_TEXT}]")

# No definition is like this, and libyaml overflows the stack on tens of thousands of levels.
_LENGTH_MAX = 64 * 1024
_LEVELS_MAX = 10_000
_LEVEL = re.compile(r"[\[{]|[-?]\s")


class Problems:
    """What is wrong with a file, collected so that it can be shown whole."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: list[tuple[int, str]] = []
        self.hint = f"correct {source} (keys: man qsysd.yaml)" if source else "qsysd create --help"

    def add(self, node: Any, path: str, message: str) -> None:
        """Note a problem at a YAML node."""
        line = node.start_mark.line + 1
        where = (f"{self.source}:{line}: " if self.source else "") + (f"{path}: " if path else "")
        self.lines.append((line, where + message))

    def check(self) -> None:
        """Raise InvalidError with every problem, in the order of the file, if there is any."""
        if self.lines:
            raise InvalidError("\n".join(text for _, text in sorted(self.lines)), hint=self.hint)


def _unknown(key: str, known: Iterable[str]) -> str:
    key = key if len(key) <= 40 else f"{key[:40]}…"
    near = closest(key, known)
    return f"unknown key {key!r}" + (f"; did you mean {near!r}?" if near else "")


class Section:
    """A YAML mapping, read key by key; problems go to `problems`, and the default is returned then."""

    def __init__(self, node: Any, path: str, problems: Problems, known: Iterable[str]) -> None:
        self.node = node
        self.path = path
        self.problems = problems
        self.items: dict[str, Any] = {}
        self.is_mapping = node.id == "mapping"
        known = list(known)
        if not self.is_mapping:
            problems.add(node, path, "must be a mapping of keys to values")
            return
        for key_node, value_node in node.value:
            key = str(key_node.value) if key_node.id == "scalar" else ""
            if key_node.id != "scalar":
                problems.add(key_node, path, "a key must be a single word")
            elif key not in known:
                problems.add(key_node, path, _unknown(key, known))
            elif key in self.items:
                problems.add(key_node, path, f"duplicate key {key!r}")
            else:
                self.items[key] = value_node

    def _where(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def present(self, key: str) -> bool:
        """Return whether the key is there with a value."""
        return key in self.items and not _is_null(self.items[key])

    def value(self, key: str, convert: Callable[[Any], T], default: T) -> T:
        """Return the converted value of a key; `convert` raises ValueError with a message for people."""
        if not self.present(key):
            return default
        try:
            return convert(self.items[key])
        except ValueError as error:
            self.problems.add(self.items[key], self._where(key), str(error))
            if isinstance(error, image_names.RefusedName):
                self.problems.hint = error.hint
            return default

    def required(self, key: str, convert: Callable[[Any], T], default: T) -> T:
        """Like `value`, and a problem when the key is not there."""
        if self.is_mapping and not self.present(key):
            self.problems.add(self.node, self.path, f"the key {key!r} is missing")
        return self.value(key, convert, default)

    def each(self, key: str, convert: Callable[[Any, str], T]) -> tuple[T, ...]:
        """Return the converted items of a list; `convert` also gets the item's path."""
        if not self.present(key):
            return ()
        node = self.items[key]
        if node.id != "sequence":
            self.problems.add(node, self._where(key), "must be a list")
            return ()
        result = []
        for index, item in enumerate(node.value):
            where = f"{self._where(key)}[{index}]"
            try:
                result.append(convert(item, where))
            except ValueError as error:
                self.problems.add(item, where, str(error))
        return tuple(result)


def _is_null(node: Any) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _scalar(node: Any) -> str:
    if node.id != "scalar":
        raise ValueError("must be a single value, not a list or a mapping")
    return str(node.value)


def _text(node: Any) -> str:
    """Return a string; refuse what YAML 1.1 takes for something else (no, 0123, 1e3, 12:30)."""
    text = _scalar(node)
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        raise ValueError("an item without a value; write a text in quotes: ''")
    if kind in ("bool", "int", "float", "timestamp"):
        kind = {"bool": "truth value", "timestamp": "time"}.get(kind, "number")
        raise ValueError(f"{text} is a {kind} in YAML, not a text; write it in quotes: '{text}'")
    if _NOT_TEXT.search(text):
        raise ValueError("control characters, noncharacters and line breaks are not allowed")
    return text


def _matching(rule: re.Pattern[str], what: str) -> Callable[[Any], str]:
    def convert(node: Any) -> str:
        text = _text(node)
        if not rule.fullmatch(text):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return convert


def _name(node: Any) -> str:
    text = _text(node)
    if not is_name(text):
        raise ValueError(f"{text!r} is not a name; allowed is {NAME_RULE}")
    return text


def _device_name(node: Any) -> str:
    text = _text(node)
    if text in RESERVED_DEVICE_NAMES:
        raise ValueError(f"{text!r} is the name of a device that qsysd adds itself")
    if not is_device_name(text):
        raise ValueError(f"{text!r} is not the name of a device; allowed is {DEVICE_NAME_RULE}")
    return text


def _integer(minimum: int, maximum: int) -> Callable[[Any], int]:
    def convert(node: Any) -> int:
        text = _scalar(node)
        if re.fullmatch("0[0-9]+", text):
            raise ValueError(
                f"{text} begins with a zero, which YAML reads as octal; write {text.lstrip('0') or '0'}"
            )
        if not re.fullmatch("[0-9]+", text):
            raise ValueError(f"{text!r} is not a whole number")
        if not minimum <= int(text) <= maximum:
            raise ValueError(f"{text} is out of range; allowed is {minimum} to {maximum}")
        return int(text)

    return convert


def _boolean(node: Any) -> bool:
    text = _scalar(node)
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _memory_mib(node: Any) -> int:
    size = values.parse_size(_scalar(node), default_unit="M")
    if size < MEMORY_MINIMUM_MIB * 1024**2:
        raise ValueError(f"{_scalar(node)} is too little memory; the least is {MEMORY_MINIMUM_MIB}M")
    return size // 1024**2


def _disk_size(node: Any) -> int:
    size = values.parse_size(_scalar(node), default_unit="G")
    if size < 1024**2:
        raise ValueError(f"{_scalar(node)} is too small for a disk; the least is 1M")
    return size


def _duration(node: Any) -> int:
    seconds = values.parse_duration(_scalar(node))
    if not 1 <= seconds <= 24 * 3600:
        raise ValueError("must be between 1s and 24h")
    return seconds


def _mac(node: Any) -> str:
    text = _scalar(node).lower()
    if not values.MAC.fullmatch(text):
        raise ValueError(f"{text!r} is not a MAC address; write for example '52:54:00:12:34:56'")
    if int(text[:2], 16) & 1:
        raise ValueError(f"{text} is a multicast address, which no network card can have")
    return text


def _address(node: Any) -> str:
    text = _text(node)
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IPv4 address") from error


def _subnet(node: Any) -> str:
    text = _text(node)
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IPv4 subnet: {error}") from error
    if not 16 <= subnet.prefixlen <= 28:
        raise ValueError(f"{text} has no usable size; allowed is /16 to /28")
    return str(subnet)


def _plain_path(node: Any) -> str:
    text = _text(node)
    if not _PLAIN_PATH.fullmatch(text) or "/../" in f"{text}/":
        raise ValueError(f"{text!r} is not a plain absolute path: letters, digits and . _ / + @ = ~ - only")
    return text


def _choice(enum: type[T]) -> Callable[[Any], T]:
    def convert(node: Any) -> T:
        text = _scalar(node)
        allowed = [str(member.value) for member in enum]  # type: ignore[attr-defined]
        if text not in allowed:
            raise ValueError(f"{text!r} is not one of {', '.join(allowed)}")
        return enum(text)  # type: ignore[call-arg]

    return convert


def _compose(text: str, source: str) -> Any:
    """Return the root node of a YAML text, None for an empty one. Raises InvalidError."""
    import yaml

    hint = f"correct {source}" if source else None
    if len(text) > _LENGTH_MAX or len(_LEVEL.findall(text)) > _LEVELS_MAX:
        raise InvalidError(f"{source}: too long for a definition, or too deeply nested", hint=hint)
    try:
        node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except UnicodeError as error:
        raise InvalidError(f"{source}: not UTF-8 text", hint=hint) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        words = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise InvalidError(f"{source}{line}: not valid YAML: {words}", hint=hint) from error
    return None if node is None or (_is_null(node) and not node.value) else node


def _parse(text: str, source: str) -> Any:
    """Return the root node of a YAML text. Raises InvalidError with the parser's own words."""
    node = _compose(text, source)
    if node is None:
        raise InvalidError(
            f"{source}: the file is empty",
            hint="examples: /usr/share/doc/qsysd/examples; keys: man qsysd.yaml",
        )
    return node

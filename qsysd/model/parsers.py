"""Parsers of single values: text in, a checked value out, and back; and the JSON Schema of what they read.

A value is checked by its text and not by the type that YAML 1.1 gives to it: `no`, `0123` and
`52:54:00:12:34:56` mean what they look like, or are refused with the way to write them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from qsysd import image_names, values
from qsysd.paths import DEVICE_NAME_RULE, NAME_RULE, is_device_name, is_name

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)

MIB = 1024**2
MEMORY_MINIMUM_MIB = 16
# Devices that qsysd adds itself; their names are QEMU's ids.
RESERVED_DEVICE_NAMES = frozenset(("console", "rng0", "seed"))

# What systemd and QEMU give no meaning to.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/+@=~-]+")
_NOT_TEXT = re.compile(f"[{values.NOT_TEXT}]")
_SIZE_SCHEMA = r"^(0|[1-9][0-9]*)(\.[0-9]+)? *([KMGTkmgt]([iI]?[bB])?|[bB])?$"
_BYTE_SCHEMA = r"([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_IPV4_SCHEMA = rf"{_BYTE_SCHEMA}(\.{_BYTE_SCHEMA}){{3}}"


@dataclass(frozen=True)
class Scalar:
    """A single value as it is written. type: the type that YAML 1.1 gives to it (`str`, `bool`, `int` …)."""

    text: str
    type: str = "str"


@dataclass(frozen=True)
class Parser(Generic[T]):
    """How a value is read and written.

    read: raises ValueError with a message for the user. write: returns what a definition contains. schema:
    the JSON Schema of the values that a definition can contain; it may accept more than `read`.
    """

    read: Callable[[Scalar], T]
    write: Callable[[T], str | int | bool]
    schema: Mapping[str, Any]


def _text(scalar: Scalar) -> str:
    if scalar.type == "null":
        raise ValueError("an empty item; write empty text as ''")
    if scalar.type in ("bool", "int", "float", "timestamp"):
        kind = {"bool": "boolean", "timestamp": "time"}.get(scalar.type, "number")
        raise ValueError(f"{scalar.text} is a {kind} in YAML, not text; write it in quotes: '{scalar.text}'")
    if _NOT_TEXT.search(scalar.text):
        raise ValueError("control characters, noncharacters and line breaks are not allowed")
    return scalar.text


def text() -> Parser[str]:
    """Return the parser of any text on one line."""
    return Parser(_text, str, {"type": "string", "pattern": "^[^\\u0000-\\u001f\\u007f]*$"})


def matching(rule: str, what: str, *, schema: str = "") -> Parser[str]:
    """Return the parser of a text of one form. schema: a simpler regular expression for the JSON Schema."""
    pattern = re.compile(rule)

    def read(scalar: Scalar) -> str:
        found = _text(scalar)
        if not pattern.fullmatch(found):
            raise ValueError(f"{found!r} is not {what}")
        return found

    return Parser(read, str, {"type": "string", "pattern": f"^({schema or rule})$"})


def name() -> Parser[str]:
    """Return the parser of the name of a VM or a network."""

    def read(scalar: Scalar) -> str:
        found = _text(scalar)
        if not is_name(found):
            raise ValueError(f"{found!r} is not a name; allowed is {NAME_RULE}")
        return found

    return Parser(read, str, {"type": "string", "pattern": f"^{NAME_RULE}$"})


def device_name() -> Parser[str]:
    """Return the parser of the name of a disk, a NIC or another device."""

    def read(scalar: Scalar) -> str:
        found = _text(scalar)
        if found in RESERVED_DEVICE_NAMES:
            raise ValueError(f"{found!r} is the name of a device that qsysd adds itself")
        if not is_device_name(found):
            raise ValueError(f"{found!r} is not the name of a device; allowed is {DEVICE_NAME_RULE}")
        return found

    return Parser(
        read,
        str,
        {
            "type": "string",
            "pattern": f"^{DEVICE_NAME_RULE}$",
            "not": {"enum": sorted(RESERVED_DEVICE_NAMES)},
        },
    )


def image() -> Parser[str]:
    """Return the parser of the name of an image."""
    return Parser(
        lambda scalar: image_names.checked(_text(scalar)),
        str,
        {"type": "string", "pattern": f"^{image_names.NAME_RULE}$"},
    )


def integer(minimum: int, maximum: int) -> Parser[int]:
    """Return the parser of a whole number within limits."""

    def read(scalar: Scalar) -> int:
        found = scalar.text
        if re.fullmatch("0[0-9]+", found):
            raise ValueError(
                f"{found} begins with a zero, which YAML reads as octal; write {found.lstrip('0') or '0'}"
            )
        if not re.fullmatch("[0-9]+", found):
            raise ValueError(f"{found!r} is not a whole number")
        if not minimum <= int(found) <= maximum:
            raise ValueError(f"{found} is out of range; allowed is {minimum} to {maximum}")
        return int(found)

    return Parser(read, int, {"type": "integer", "minimum": minimum, "maximum": maximum})


def boolean() -> Parser[bool]:
    """Return the parser of true and false."""

    def read(scalar: Scalar) -> bool:
        if scalar.text not in ("true", "false"):
            raise ValueError(f"{scalar.text!r} is neither true nor false")
        return scalar.text == "true"

    return Parser(read, bool, {"type": "boolean"})


def memory() -> Parser[int]:
    """Return the parser of a size of memory, in MiB; a bare number is MiB."""

    def read(scalar: Scalar) -> int:
        size = values.parse_size(scalar.text, default_unit="M")
        if size < MEMORY_MINIMUM_MIB * MIB:
            raise ValueError(f"{scalar.text} is too little memory; the minimum is {MEMORY_MINIMUM_MIB}M")
        return size // MIB

    numbers = {"type": "number", "minimum": MEMORY_MINIMUM_MIB}
    return Parser(read, lambda mib: values.format_size(mib * MIB), _size_schema(numbers))


def size(unit: str) -> Parser[int]:
    """Return the parser of the size of a disk, in bytes. unit: that of a bare number, for example G."""

    def read(scalar: Scalar) -> int:
        size = values.parse_size(scalar.text, default_unit=unit)
        if size < MIB:
            raise ValueError(f"{scalar.text} is too small for a disk; the minimum is 1M")
        return size

    return Parser(read, values.format_size, _size_schema({"type": "number", "exclusiveMinimum": 0}))


def _size_schema(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(numbers), {"type": "string", "pattern": _SIZE_SCHEMA}]}


def duration() -> Parser[int]:
    """Return the parser of a time, in seconds; a bare number is seconds."""

    def read(scalar: Scalar) -> int:
        seconds = values.parse_duration(scalar.text)
        if not 1 <= seconds <= 24 * 3600:
            raise ValueError("must be between 1s and 24h")
        return seconds

    return Parser(
        read,
        lambda seconds: f"{seconds}s",
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 24 * 3600},
                {"type": "string", "pattern": "^[1-9][0-9]* *(s|sec|m|min|h)?$"},
            ]
        },
    )


def mac() -> Parser[str]:
    """Return the parser of a MAC address that a NIC can have."""

    def read(scalar: Scalar) -> str:
        found = scalar.text.lower()
        if not values.MAC.fullmatch(found):
            raise ValueError(f"{found!r} is not a MAC address; write for example '52:54:00:12:34:56'")
        if int(found[:2], 16) & 1:
            raise ValueError(f"{found} is a multicast address, which no NIC can have")
        return found

    digit = "[0-9A-Fa-f]"
    pattern = f"^{digit}[02468ACEace](:{digit}{{2}}){{5}}$"
    return Parser(read, str, {"type": "string", "pattern": pattern})


def address() -> Parser[str]:
    """Return the parser of an IPv4 address."""

    def read(scalar: Scalar) -> str:
        found = _text(scalar)
        try:
            return str(ipaddress.IPv4Address(found))
        except ValueError as error:
            raise ValueError(f"{found!r} is not an IPv4 address") from error

    return Parser(read, str, {"type": "string", "pattern": f"^{_IPV4_SCHEMA}$"})


def subnet() -> Parser[str]:
    """Return the parser of an IPv4 subnet that a network can have."""

    def read(scalar: Scalar) -> str:
        found = _text(scalar)
        try:
            parsed = ipaddress.IPv4Network(found)
        except ValueError as error:
            raise ValueError(f"{found!r} is not an IPv4 subnet: {error}") from error
        if not 16 <= parsed.prefixlen <= 28:
            raise ValueError(f"{found} has no usable size; allowed is /16 to /28")
        return str(parsed)

    pattern = f"^{_IPV4_SCHEMA}/(1[6-9]|2[0-8]|{_IPV4_SCHEMA})$"
    return Parser(read, str, {"type": "string", "pattern": pattern})


def path() -> Parser[str]:
    """Return the parser of an absolute path without any character that systemd or QEMU gives a meaning to."""

    def read(scalar: Scalar) -> str:
        found = _text(scalar)
        if not _PLAIN_PATH.fullmatch(found) or "/../" in f"{found}/":
            raise ValueError(
                f"{found!r} is not a plain absolute path: letters, digits and . _ / + @ = ~ - only"
            )
        return found

    return Parser(read, str, {"type": "string", "pattern": f"^{_PLAIN_PATH.pattern}$"})


def choice(enum: type[Choice]) -> Parser[Choice]:
    """Return the parser of one of the values of an enum."""
    allowed = [member.value for member in enum]

    def read(scalar: Scalar) -> Choice:
        if scalar.text not in allowed:
            raise ValueError(f"{scalar.text!r} is not one of {', '.join(allowed)}")
        return enum(scalar.text)

    return Parser(read, lambda member: member.value, {"enum": allowed})

"""Sizes, times and addresses: text to numbers, and back.

Sizes follow QEMU and virt-install: binary units, K M G T (or KiB, MiB, …).
"""

from __future__ import annotations

import os
import re

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SIZE = re.compile(
    r"(?P<number>[0-9]{1,30}(?:\.[0-9]{1,9})?)\s*(?:(?P<unit>[KMGT])(?:i?B)?|(?P<bytes>B))?", re.IGNORECASE
)
_SECONDS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
_DURATION = re.compile(r"(?P<number>[1-9][0-9]*|0)\s*(?P<unit>s|sec|m|min|h|)")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# Control characters and Unicode's noncharacters, as the inside of a character class: YAML does not allow
# the former unescaped, and systemd refuses an environment file with one of the latter.
NOT_TEXT = "\x00-\x1f\x7f\ufdd0-\ufdef" + "".join(
    f"{chr(plane * 0x10000 + 0xFFFE)}{chr(plane * 0x10000 + 0xFFFF)}" for plane in range(17)
)
SHA256 = re.compile("[0-9a-f]{64}")
# type, key and comment as in the .pub file that ssh-keygen writes (sshd(8), AUTHORIZED_KEYS FILE FORMAT)
SSH_KEY = re.compile(rf"(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/]+=*( [^{NOT_TEXT}]*)?")
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # a user's name: useradd(8)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def parse_size(text: str, *, default_unit: str) -> int:
    """Return the bytes that `text` (`512M`, `1.5G`, `2GiB`) means. default_unit: of a number without a unit.

    Raise ValueError with a message for the user.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is not a size; write for example 512M or 2G")
    number, unit = found["number"], (found["unit"] or "").upper()
    if re.match(r"0[0-9]", number):
        raise ValueError(
            f"{text!r} begins with a zero, which YAML reads as octal; write {number.lstrip('0') or '0'}{unit}"
        )
    factor: int = UNITS["" if found["bytes"] else unit or default_unit]
    whole, _, fraction = number.partition(".")
    # In integers: a float is not exact from 8 PiB on.
    scale: int = 10 ** len(fraction)
    return int(whole) * factor + int(fraction or 0) * factor // scale


def format_size(size: int) -> str:
    """Return bytes in the largest unit that divides them: `512M`, `10G`."""
    for unit in ("T", "G", "M", "K"):
        if size and size % UNITS[unit] == 0:
            return f"{size // UNITS[unit]}{unit}"
    return f"{size}B"


def human_size(size: float) -> str:
    """Return bytes, rounded: `187 MiB`, `1.2 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_duration(seconds: float) -> str:
    """Return seconds in the two largest units: `42 s`, `3 min 5 s`, `2 h 10 min`, `4 d 1 h`."""
    left = int(seconds)
    parts: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length or (name == "s" and not parts):
            parts.append(f"{left // length} {name}")
            left %= length
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)


def parse_duration(text: str) -> int:
    """Return the seconds that `text` (`90`, `90s`, `2min`, `1h`) means. Raise ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is not a time; write for example 90s or 2min")
    return int(found["number"]) * _SECONDS[found["unit"]]


def printable(text: str) -> str:
    """Return a line without control characters and escape sequences of terminals.

    For all text that a guest, or a QEMU that a guest controls, can choose: console output, file names.
    """
    escapes = r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return re.sub(escapes + r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", "", text)


def new_mac() -> str:
    """Return a random MAC in QEMU's locally administered range 52:54:00."""
    return f"52:54:00:{os.urandom(3).hex(':')}"

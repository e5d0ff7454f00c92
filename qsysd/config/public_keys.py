"""SSH public keys, in files and as arguments."""

from __future__ import annotations

from collections.abc import Iterable

from qsysd import values
from qsysd.errors import InvalidError

KEYS_MAX = 1024 * 1024  # characters of a file


def read(path: str) -> list[str]:
    """Return the public keys in a file, one per line. Raise InvalidError for a file without one."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(KEYS_MAX + 1)  # /dev/zero does not end
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path} is not a file of SSH public keys: {error}") from error
    if len(text) > KEYS_MAX:
        raise InvalidError(f"{path} is too long for a file of SSH public keys", hint="name the .pub file")
    lines = [" ".join(line.split(maxsplit=2)).rstrip() for line in text.split("\n")]
    found = [line for line in lines if values.SSH_KEY.fullmatch(line)]
    if not found:
        raise InvalidError(f"{path} contains no SSH public key", hint="name the .pub file")
    return found


def check(keys: Iterable[str]) -> None:
    """Raise InvalidError for a text that is not a public key on one line."""
    for key in keys:
        if not values.SSH_KEY.fullmatch(key):
            raise InvalidError(f"{key!r} is not an SSH public key", hint="a line of a .pub file")

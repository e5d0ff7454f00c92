"""Option lists of the command line → the plain mappings that a definition has.

`--disk size=20G`, `--disk 20G` and `--nic network=lan,mac=52:54:00:12:34:56`: the keys are those of the
model. Values are checked where the definition is (`load.parse_vm`), so that all errors are reported at once.
A value cannot contain a comma.
"""

from __future__ import annotations

from qsysd.config.reader import unknown_key
from qsysd.errors import InvalidError
from qsysd.model.disk import Disk
from qsysd.model.field import declarations, keys
from qsysd.model.nic import Nic


def disk(text: str) -> dict[str, str]:
    """Return the item of `disks` that the value of --disk describes. Raise InvalidError."""
    return parse(text, Disk, "--disk")


def nic(text: str) -> dict[str, str]:
    """Return the item of `nics` that the value of --nic describes. Raise InvalidError."""
    return parse(text, Nic, "--nic")


def parse(text: str, model: type, option: str) -> dict[str, str]:
    """Return the plain mapping of an option list with the keys of a model.

    The first item can be a value without its key: that of the model's bare field. Raise InvalidError
    for an unknown, duplicate or empty item. option: the option's name, for messages.
    """
    known = keys(model)
    bare = next((declared.key for declared in declarations(model).values() if declared.bare), "")
    found: dict[str, str] = {}
    for position, item in enumerate(text.split(",")):
        key, separator, value = item.partition("=")
        if not separator and item and not position and bare:
            key, value = bare, item
        elif not separator:
            raise _invalid(option, f"{item!r} is not KEY=VALUE", known)
        if key not in known:
            raise _invalid(option, unknown_key(key, known), known)
        if key in found:
            raise _invalid(option, f"duplicate key {key!r}", known)
        if not value:
            raise _invalid(option, f"{key!r} has no value", known)
        found[key] = value
    return found


def _invalid(option: str, problem: str, known: tuple[str, ...]) -> InvalidError:
    return InvalidError(f"{option}: {problem}", hint=f"keys of {option}: {', '.join(known)}")

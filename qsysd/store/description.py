"""What `status` shows of a definition, read from the environment file that was rendered from it.

The definition itself is parsed only where this module cannot be sure: YAML and templates take longer than
all else that `status` does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from qsysd.digests import digest
from qsysd.errors import InvalidError
from qsysd.files import read_text
from qsysd.interface_names import nic_of_tap
from qsysd.runtime.ports import Port, parse_ports
from qsysd.store import Store, environment

# As `dump` writes it. A plain text that YAML takes for another type is not a login.
_USER = re.compile("^user: ([a-z_][a-z0-9_-]*)$", re.MULTILINE)
_OTHER_TYPES = ("false", "n", "no", "null", "off", "on", "true", "y", "yes")
_MACHINE = re.compile(r"^-machine (\S+)", re.MULTILINE)
# The digest is that of the files without these values.
_MARKED = ("DIGEST", "DEFINITION", "SEED")


@dataclass(frozen=True)
class Description:
    """A VM by its environment file. digest: of the rendering; nics: the name and the port of each NIC."""

    digest: str
    uuid: str
    machine: str
    accel: str
    user: str | None
    nics: tuple[tuple[str, Port], ...]


def of_rendered(store: Store, vm: str) -> Description | None:
    """Return the description of a VM whose files are as they were rendered from its definition.

    Return None where they are not, and where the definition contains something that they do not.
    """
    scope = store.scope
    text, definition = read_text(scope.environment(vm)), read_text(scope.definition(vm))
    if text is None or definition is None or store.is_stale(vm):
        return None
    users = _USER.findall(definition)
    if len(users) != len(re.findall(r"\buser\b", definition)) or set(users) & set(_OTHER_TYPES):
        return None
    rendered = environment.read(scope.environment(vm))
    machine = _MACHINE.search(text)
    if not machine or not _is_as_rendered(text, read_text(scope.drop_in(vm)) or "", rendered):
        return None
    if _may_be_newer(scope.defaults_file, scope.environment(vm)):
        return None
    try:
        ports = parse_ports(rendered.get("QSYSD_NICS", ""))
    except InvalidError:
        return None
    nics = tuple((nic_of_tap(vm, port.tap), port) for port in ports)
    if not all(name for name, _ in nics):
        return None
    return Description(
        digest=rendered["QSYSD_DIGEST"],
        uuid=rendered.get("QSYSD_UUID", ""),
        machine=machine[1],
        accel=rendered.get("QSYSD_ACCEL", "-accel auto").partition(" ")[2],
        user=users[0] if users else None,
        nics=nics,
    )


def _is_as_rendered(text: str, drop_in: str, rendered: dict[str, str]) -> bool:
    """Return whether environment file and drop-in have the digest that `render.vm` wrote into the first."""
    for mark in _MARKED:
        text = re.sub(f"^QSYSD_{mark}=.*$", f"QSYSD_{mark}=@{mark}@", text, count=1, flags=re.MULTILINE)
    return digest((text + drop_in).encode()) == rendered.get("QSYSD_DIGEST")


def _may_be_newer(path: str, other: str) -> bool:
    """Return whether a file exists and was changed after another, or at the same time."""
    try:
        return os.stat(path).st_mtime_ns >= os.stat(other).st_mtime_ns
    except OSError:
        return False

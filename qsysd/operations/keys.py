"""ssh keys: those of the person at the command, and one of the host's own for `qsysd ssh`."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from contextlib import suppress

from qsysd import process, values
from qsysd.errors import InvalidError
from qsysd.paths import Scope


def host_key(scope: Scope) -> str:
    """Return the public half of the host's key; it is made the first time. Root only."""
    if not os.path.exists(scope.ssh_key):
        os.makedirs(os.path.dirname(scope.ssh_key), mode=0o700, exist_ok=True)
        partial = f"{scope.ssh_key}.part"
        for path in (partial, f"{partial}.pub"):
            if os.path.exists(path):
                os.unlink(path)
        process.run(
            [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"qsysd@{os.uname().nodename}",
                "-f",
                partial,
            ]
        )
        os.rename(f"{partial}.pub", f"{scope.ssh_key}.pub")
        os.rename(partial, scope.ssh_key)
    with open(f"{scope.ssh_key}.pub", encoding="utf-8") as file:
        return file.read().strip()


def callers_homes() -> list[str]:
    """Return the home directories of the person at the command: also of the one behind sudo."""
    homes = [os.path.expanduser("~")]
    behind = os.environ.get("SUDO_UID") or os.environ.get("PKEXEC_UID")
    if behind and behind.isdigit():
        try:
            homes.append(pwd.getpwuid(int(behind)).pw_dir)
        except KeyError:
            return homes
    return list(dict.fromkeys(homes))


def callers_keys() -> list[str]:
    """Return the caller's public keys, from ~/.ssh/*.pub."""
    found: list[str] = []
    for home in callers_homes():
        directory = os.path.join(home, ".ssh")
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(".pub"))
        except OSError:
            continue  # no such directory, or not ours to read: then there are no keys
        for name in names:
            with suppress(InvalidError):  # a key of another program, or not ours to read
                found += read_keys(os.path.join(directory, name))
    return list(dict.fromkeys(found))


def for_new_guest(scope: Scope) -> list[str]:
    """Return the public keys that a new guest gets: the host's own, and those of the caller."""
    return [host_key(scope), *callers_keys()]


def read_keys(path: str) -> Sequence[str]:
    """Return the public keys in a file, one a line. Raises InvalidError when it has none."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [" ".join(line.split(maxsplit=2)).rstrip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path} is not a file of ssh public keys: {error}") from error
    found = [line for line in lines if values.SSH_KEY.fullmatch(line)]
    if not found:
        raise InvalidError(f"{path} holds no ssh public key", hint="name the .pub file")
    return found

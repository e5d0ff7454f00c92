"""SSH keys: those of the caller, and the key of the host for `qsysd ssh`."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress

from qsysd.config import public_keys
from qsysd.errors import HostError, InvalidError, QsysdError
from qsysd.files import read_text, remove, sync_directory, sync_file, write_atomic
from qsysd.paths import Scope
from qsysd.runtime import spawn


def host_key(scope: Scope) -> str:
    """Return the public key of the host, which is created at its first use. Root only.

    Raise HostError if the private key is damaged: guests do not accept another key of this host.
    """
    public = f"{scope.ssh_key}.pub"
    if not os.path.lexists(scope.ssh_key):
        _create_host_key(scope)
    with suppress(InvalidError):
        return public_keys.read(public)[0]
    done = spawn.run(["ssh-keygen", "-y", "-P", "", "-f", scope.ssh_key], check=False)
    if done.returncode:
        raise HostError(
            f"the SSH key {scope.ssh_key} cannot be used: {spawn.last_words(done.stderr)}",
            hint=f"restore it from a backup; or, for a new key: mv {scope.ssh_key} {scope.ssh_key}.damaged",
        )
    key = done.stdout.strip()
    with suppress(QsysdError):  # for example because it is a directory
        write_atomic(public, f"{key}\n", 0o644)
    return key


def _create_host_key(scope: Scope) -> None:
    os.makedirs(os.path.dirname(scope.ssh_key), mode=0o700, exist_ok=True)
    partial, comment = f"{scope.ssh_key}.part", f"qsysd@{os.uname().nodename}"
    for path in (partial, f"{partial}.pub"):
        remove(path)
    spawn.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", partial])
    with suppress(QsysdError):  # it is derived from the private key if it is missing
        write_atomic(f"{scope.ssh_key}.pub", read_text(f"{partial}.pub") or "", 0o644)
    remove(f"{partial}.pub")
    sync_file(partial)
    os.rename(partial, scope.ssh_key)
    sync_directory(os.path.dirname(scope.ssh_key))


def callers_homes() -> list[str]:
    """Return the home directories of the caller, and of the user who ran sudo or pkexec."""
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
            continue  # it does not exist or cannot be read
        for path in (os.path.join(directory, name) for name in names):
            if os.path.isfile(path):  # a FIFO without a writer would block
                with suppress(InvalidError):  # not an SSH key, or not readable
                    found += public_keys.read(path)
    return list(dict.fromkeys(found))


def for_new_guest(scope: Scope) -> list[str]:
    """Return the public keys for a new guest: the host's key, and those of the caller."""
    return [host_key(scope), *callers_keys()]

"""nft(8) of nftables: each text of commands is one transaction."""

from __future__ import annotations

from qsysd.errors import HostError
from qsysd.runtime import spawn

# Seconds; a transaction takes a few milliseconds, this only keeps a broken host from blocking a start.
TIMEOUT = 20.0


COMMAND = ("nft", "-f", "-")


def begin(commands: str) -> spawn.Running:
    """Start a transaction; `Running.finish` waits for it. Raise HostError without nft."""
    return spawn.Running(COMMAND, stdin=commands)


def run(commands: str) -> str:
    """Run one transaction and return what its commands list. Raise HostError with nft's error."""
    return _output(spawn.run(COMMAND, stdin=commands, timeout=TIMEOUT, check=False))


def _output(done: spawn.Done) -> str:
    if done.returncode != 0:
        errors = [line.strip() for line in done.stderr.splitlines() if "Error:" in line]
        message = "; ".join(errors) or spawn.last_words(done.stderr) or f"exit status {done.returncode}"
        raise HostError(f"nft: {message}")
    return done.stdout


def load(path: str) -> None:
    """Load a file of commands as one transaction. Raise HostError with nft's error."""
    try:
        with open(path, encoding="utf-8") as file:
            commands = file.read()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}", hint="qsysd render") from error
    run(commands)


def has_table(family: str, name: str) -> bool:
    """Return whether the host has a table. Raise HostError where nft fails."""
    return f"table {family} {name}" in run(f"list tables {family}\n").splitlines()

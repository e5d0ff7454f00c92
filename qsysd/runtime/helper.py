"""The command that units run.

    ExecStartPre=+  before-start VM   as root: the VM's directory to its uid, its TAPs
    ExecStartPost=+ ready VM          as the VM's user: successful only when QEMU answers QMP
    ExecStop=+      stop VM           as the VM's user: power button, repeated, then `quit`;
                                      after QEMU has exited, as root, what after-stop does
    ExecStopPost=+  after-stop VM     as root: remove TAPs, give the VM's directory back to root
                    network-up NET, network-down NET, trim-logs all, check-taps all

It reads no YAML, and needs nothing of the package, so that a VM can be stopped after the package has
been removed. Its input is the unit's environment, which is checked as untrusted.
"""

from __future__ import annotations

import os

from qsysd.errors import InvalidError, QsysdError
from qsysd.paths import Scope, is_name
from qsysd.runtime.unit import log

USAGE = (
    "usage: helper before-start|ready|stop|after-stop VM, "
    "network-up|network-down NETWORK, trim-logs all, check-taps all"
)


def run(verb: str, scope: Scope, name: str) -> int:
    """Run a verb, load only what it needs, and return the exit status. Raise QsysdError."""
    match verb:
        case "before-start":
            from qsysd.runtime.prepare import before_start

            before_start(scope, name)
        case "ready":
            from qsysd.runtime.readiness import ready

            return 0 if ready(scope, name) else QsysdError.code
        case "stop":
            from qsysd.runtime.shutdown import stop

            stop(scope, name)
        case "after-stop":
            from qsysd.runtime.cleanup import after_stop

            after_stop(scope, name)
        case "network-up" | "network-down":
            from qsysd.runtime import bridges

            change = bridges.up if verb == "network-up" else bridges.down
            for line in change(scope, os.environ):
                log(line)
        case "trim-logs":
            from qsysd.runtime import console_logs

            console_logs.trim(scope)
        case "check-taps":
            from qsysd.runtime.tampering import check

            for line in check(scope):
                log(f"<4>{line}")  # a warning: sd-daemon(3)
        case _:
            raise InvalidError(f"the helper has no verb {verb!r}")
    return 0


def main(arguments: list[str]) -> int:
    """Run a verb of the helper and return its exit status."""
    if len(arguments) != 2 or not is_name(arguments[1]):
        log(USAGE)
        return InvalidError.code
    verb, name = arguments
    try:
        return run(verb, Scope(), name)
    except QsysdError as error:
        log(f"{error.message}" + (f" ({error.hint})" if error.hint else ""))
        return error.code

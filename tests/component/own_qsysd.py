"""The command `qsysd` on the host below the current directory: `own_qsysd.py WORDS…`.

All of it is real but root and systemd: a fake one keeps its units in ./systemd.json. With $SHOW_MODULES
set, the modules that were imported are written to that file at the end.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# before anything of qsysd, as that is what is looked at
BEFORE = set(sys.modules)


def show_modules() -> None:
    """Write down which modules the command has imported."""
    path = os.environ.get("SHOW_MODULES")
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(sorted(set(sys.modules) - BEFORE)))


def own_systemd() -> Any:
    """Return the fake systemd of the current directory."""
    from fake_systemd import FakeSystemd

    from qsysd.paths import Scope

    return FakeSystemd(Scope())


def main() -> None:
    """Run the command line."""
    import qsysd.cli.main
    from qsysd import paths
    from qsysd.host import context

    def exit_at_once(status: int) -> None:
        show_modules()
        really_exit(status)

    really_exit = os._exit
    instead: list[tuple[Any, str, Any]] = [
        # without a root given, a Scope is below the current directory
        (paths.Scope.__init__, "__defaults__", ("",)),
        (os, "_exit", exit_at_once),
        (context, "Systemd", own_systemd),
        (context.Host, "require_root", lambda host: None),
    ]
    for owner, name, value in instead:
        setattr(owner, name, value)
    qsysd.cli.main.main()


if __name__ == "__main__":
    main()

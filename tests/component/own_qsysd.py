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


def main() -> None:
    """Run the command line."""
    import qsysd.cli
    from qsysd import paths
    from qsysd.host.context import Host

    def systemd(host: Host) -> Any:
        from fake_systemd import FakeSystemd

        if "own_systemd" not in host.__dict__:
            host.__dict__["own_systemd"] = FakeSystemd(host.scope)
        return host.__dict__["own_systemd"]

    def exit_at_once(status: int) -> None:
        show_modules()
        really_exit(status)

    really_exit = os._exit
    instead: tuple[tuple[Any, str, Any], ...] = (
        # a Scope that is not told its root is that of the current directory
        (paths.Scope.__init__, "__defaults__", ("",)),
        (Host, "systemd", property(systemd)),
        (Host, "require_root", lambda host: None),
        (os, "_exit", exit_at_once),
    )
    for owner, name, value in instead:
        setattr(owner, name, value)
    qsysd.cli.main()


if __name__ == "__main__":
    main()

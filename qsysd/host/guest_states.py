"""The run states of guests, queried from their QEMUs in parallel."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from qsysd.host.context import Host
from qsysd.runtime.qmp import MonitorError, RunStateQuery, socket_path

QUERIES_MAX = 200  # in parallel: a process can have 1024 open files


def guest_state(host: Host, name: str, pid: int, timeout: float) -> str:
    """Return QMP's run state: running, paused, io-error, …; `unknown` if QEMU does not answer in time.

    pid: QEMU's. timeout: seconds.
    """
    return guest_states(host, {name: pid}, timeout)[name]


def guest_states(host: Host, pids: Mapping[str, int], timeout: float) -> dict[str, str]:
    """Return the run states of VMs by name, queried in parallel. pids: of their QEMUs by VM name."""
    states: dict[str, str] = {}
    names = list(pids)
    for start in range(0, len(names), QUERIES_MAX):
        with queried(host, names[start : start + QUERIES_MAX], timeout) as queries:
            states |= answers(queries, pids)
    return dict.fromkeys(pids, "unknown") | states


@contextmanager
def queried(host: Host, names: Iterable[str], timeout: float) -> Iterator[dict[str, RunStateQuery]]:
    """Send queries to the VMs that have a monitor; close the connections afterwards."""
    with ExitStack() as connections:
        queries: dict[str, RunStateQuery] = {}
        for name in names:
            path = socket_path(host.scope, name, host.scope.monitor(name, "cli"))
            if _is_socket(path):
                with suppress(MonitorError):
                    query = RunStateQuery(path, timeout=timeout)
                    queries[name] = connections.enter_context(query)
        yield queries


def _is_socket(path: str) -> bool:
    """Return whether a monitor exists and is not a link, which a compromised QEMU can create.

    Root connects before it has QEMU's PID, and must not follow such a link.
    """
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def answers(queries: Mapping[str, RunStateQuery], pids: Mapping[str, int]) -> dict[str, str]:
    """Return the run states of VMs that answered. pids: of QEMUs that may answer, by VM name."""
    states: dict[str, str] = {}
    for name, query in queries.items():
        if name in pids:
            with suppress(MonitorError):
                states[name] = query.answer(peer=pids[name])
    return states

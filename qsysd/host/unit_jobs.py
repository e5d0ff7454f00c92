"""Jobs of systemd for the units of VMs: their order and their timeouts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from qsysd import paths
from qsysd.errors import QsysdError
from qsysd.files import sync_directory
from qsysd.host import unit_states
from qsysd.host.context import Host
from qsysd.host.outcomes import Outcome, State, failed
from qsysd.systemd import NOT_LOADED, JobResult, UnitState

START_TIMEOUT = 180.0  # seconds; TimeoutStartSec= is 120, and networks may have to be started first
KILL_TIMEOUT = 5.0  # seconds between SIGTERM, after which QEMU flushes its disks, and SIGKILL
STOP_MARGIN = 10.0


def prepare(host: Host, states: Iterable[UnitState]) -> None:
    """Reset the count of starts of units, and let systemd read changed files.

    A unit that is not loaded needs neither.
    """
    units = [state.name for state in states if state.load != NOT_LOADED]
    for unit in units:
        host.systemd.reset_failed(unit)
    host.systemd.refresh(units)


def refresh(host: Host, names: Sequence[str]) -> None:
    """Reload changed drop-ins of loaded units, which `systemctl start` must use, too."""
    host.systemd.refresh([paths.unit(name) for name in names])


def run_jobs(host: Host, method: str, names: Sequence[str], timeout: float) -> list[JobResult]:
    """Run a job for each VM in parallel; report what it waits for."""

    def tick(seconds: float) -> None:
        try:
            states = unit_states.states(host, names).values()
        except QsysdError:
            return  # the wait itself reports a lost bus
        stopping = [paths.vm_of_unit(state.name) for state in states if state.active == "deactivating"]
        starting = [paths.vm_of_unit(state.name) for state in states if state.active == "activating"]
        if stopping:
            host.progress.waiting(f"{', '.join(stopping)}: waiting for the guest to power off", seconds)
        elif starting:
            host.progress.waiting(f"{', '.join(starting)}: waiting for QEMU to answer", seconds)

    try:
        return host.systemd.run_jobs(method, [paths.unit(name) for name in names], timeout=timeout, tick=tick)
    finally:
        host.progress.waiting("")


def start_units(host: Host, needed_by: Mapping[str, str]) -> dict[str, Outcome]:
    """Start the units of VMs, ordered as `dependencies` returns them; return the outcomes by name."""
    names = list(needed_by)
    unit_states.require(host, names)
    states = unit_states.states(host, names)
    outcomes = {
        name: Outcome(name, State.ALREADY_RUNNING, "active", "active")
        for name in names
        if states[name].active == "active"
    }
    rest = [name for name in names if name not in outcomes]
    prepare(host, [states[name] for name in rest])
    # A start job for a unit in auto-restart waits for RestartSec; RestartUnit starts it at once.
    pausing = [name for name in rest if states[name].sub.startswith("auto-restart")]
    others = [name for name in rest if name not in pausing]
    # VMs that depend on each other start one after another.
    chain = 1 + sum(other != "" for other in needed_by.values())
    stopping = [state for state in states.values() if state.active == "deactivating"]
    timeout = chain * START_TIMEOUT + stop_limit(host, stopping)
    for method, group in (("StartUnit", others), ("RestartUnit", pausing)):
        before = {name: states[name].active for name in group}
        outcomes |= start_jobs(host, method, before, State.STARTED, timeout)
    return outcomes


def dependencies(host: Host, names: Sequence[str]) -> dict[str, str]:
    """Return VMs and all existing VMs that they depend on, each with a VM that depends on it, or "".

    Dependencies come first: systemd orders a new job only relative to jobs that are queued already.
    """
    needs: dict[str, list[str]] = {}
    needed_by = dict.fromkeys(names, "")
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in needs:
            continue
        wanted = host.store.depends_on(name)
        needs[name] = [other for other in wanted if host.store.exists(other)]
        for other in wanted:
            if other in needs[name]:
                needed_by[other] = needed_by.get(other) or name
            else:
                host.progress(f"warning: {name} depends on {other}, which does not exist")
        todo += needs[name]
    return {name: needed_by[name] for name in _sorted_by_order(needs, needed_by)}


def _sorted_by_order(after: Mapping[str, Sequence[str]], names: Iterable[str]) -> list[str]:
    """Return the names, each after those in `after[name]`; unchanged if there is a cycle."""
    if not any(after.values()):
        return list(names)
    try:
        return list(TopologicalSorter(after).static_order())
    except CycleError:
        return list(names)


def as_dependencies(
    outcomes: Mapping[str, Outcome], needed_by: Mapping[str, str], names: Sequence[str]
) -> list[Outcome]:
    """Return the outcomes of VMs that were started only because one of `names` depends on them."""
    return [
        replace(outcomes[name], needed_by=other)
        for name, other in needed_by.items()
        if name not in names and outcomes[name].state is not State.ALREADY_RUNNING
    ]


def start_jobs(
    host: Host, method: str, before: Mapping[str, str], state: State, timeout: float
) -> dict[str, Outcome]:
    """Run StartUnit or RestartUnit for VMs in parallel; return the outcome of each by name.

    before: the units' active states by VM. state: of a VM whose job is done; such a VM is active.
    """
    if not before:
        return {}
    results = dict(zip(before, run_jobs(host, method, list(before), timeout), strict=True))
    done = {name: Outcome(name, state, before[name], "active") for name in before if results[name].done}
    rest = [name for name in before if name not in done]
    if not rest:
        return done
    # A seam: the journal is read only after a failed start.
    from qsysd.host import start_errors

    after = unit_states.states(host, rest)
    return done | {
        name: failed(
            name, start_errors.error(host, name, results[name], timeout), before[name], after[name].active
        )
        for name in rest
    }


def stop_limit(host: Host, states: Sequence[UnitState]) -> float:
    """Return the seconds within which systemd stops those of these units that are not off."""
    running = [state for state in states if state.active not in unit_states.OFF]
    names = [paths.vm_of_unit(state.name) for state in running]
    return stop_plan(host, names, running)[1] if running else 0.0


def stop_plan(host: Host, names: Sequence[str], states: Sequence[UnitState]) -> tuple[list[str], float]:
    """Return VMs in the order to stop them, and the seconds after which systemd has ended all of them.

    systemd orders a new job only by the jobs that it already has: the job of a VM that others depend on must
    be enqueued after theirs.
    """
    plans = host.systemd.stop_plans(states)
    # TimeoutStopSec= applies to ExecStop=, and again to SIGTERM and SIGKILL.
    limits = [3 * plan.timeout for plan in plans]
    known = {paths.unit(name): name for name in names}
    after = {
        name: [known[unit] for unit in plan.after if unit in known]
        for name, plan in zip(names, plans, strict=True)
    }
    if not any(after.values()):
        return list(names), max(limits) + STOP_MARGIN
    return _sorted_by_order(after, names)[::-1], sum(limits) + STOP_MARGIN


def power_off(host: Host, names: Sequence[str]) -> None:
    """Switch VMs off without a shutdown of their guests; VMs that are off are left alone.

    The stop job is enqueued before the signal, so that systemd does not treat QEMU's end as a crash. Raise
    QsysdError when one cannot be stopped.
    """
    units = [paths.unit(name) for name in names]
    running = [
        state.name for state in host.systemd.states(units).values() if state.active not in unit_states.OFF
    ]
    if not running:
        return

    def signal_all(number: int, who: str) -> None:
        for unit in running:
            # Without a main process, before and after QEMU runs, this fails.
            with suppress(QsysdError):
                host.systemd.kill(unit, number, who=who)

    results = host.systemd.run_jobs(
        "StopUnit", running, timeout=KILL_TIMEOUT, enqueued=lambda: signal_all(signal.SIGTERM, "main")
    )
    running = [result.unit for result in results if not result.done]
    if running:
        results = host.systemd.run_jobs(
            "StopUnit", running, timeout=KILL_TIMEOUT, enqueued=lambda: signal_all(signal.SIGKILL, "all")
        )
    for result in results:
        if not result.done:
            raise QsysdError(f"{result.unit} cannot be stopped", hint=f"systemctl status {result.unit}")
    for unit in units:
        host.systemd.reset_failed(unit)


def reload_dhcp(host: Host, network: str) -> None:
    """Let the dnsmasq of a network drop entries: it reads new ones by itself, but drops none.

    By a signal, as the unit's ExecReload does, not by a job: a reload job waits for the stop jobs of all
    VMs on the network, and all their start jobs wait for it. A guest that ignores its power button would
    delay them for its stop_timeout.
    """
    unit = paths.dhcp_unit(network)
    if host.systemd.state(unit).active == "active":
        host.systemd.kill(unit, signal.SIGHUP)


def enable(host: Host, names: Iterable[str]) -> None:
    """Enable VMs to start at host boot, durably."""
    host.systemd.enable([paths.unit(name) for name in names])
    sync_links(host)


def sync_links(host: Host) -> None:
    """Sync the links that systemd creates and removes to start VMs at host boot."""
    for directory in (host.scope.wants_dir, host.scope.unit_dir):
        if os.path.isdir(directory):
            sync_directory(directory)

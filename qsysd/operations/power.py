"""The verbs that change the state of VMs, by jobs of systemd or QMP commands.

docs/states.md is the table of verbs and states. Each verb works on several VMs in parallel; the failure of
one does not affect the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qsysd import paths
from qsysd.errors import NotFoundError, QsysdError, StateError, TimeoutExpired
from qsysd.host import locks, selection, unit_jobs, unit_states
from qsysd.host.changes import begin, changing
from qsysd.host.context import Host
from qsysd.host.outcomes import Outcome, State, failed
from qsysd.systemd import JobResult

if TYPE_CHECKING:
    from qsysd.qemu.monitor import Monitor

MONITOR_TIMEOUT = 5.0


def start(host: Host, names: Sequence[str] | None) -> list[Outcome]:
    """Start VMs and the VMs that they depend on; a VM is started when its QEMU answers on QMP.

    Dependencies that already run are not in the result.
    """
    vms = begin(host, names, ready=True)
    needed_by = unit_jobs.dependencies(host, vms)
    outcomes = _render_stale(host, list(needed_by))
    with locks.locked(host, needed_by, exclusive=False):
        vms = selection.still_existing(host, names, vms)
        needed_by = {name: needed_by[name] for name in selection.still_existing(host, names, list(needed_by))}
        valid = {name: other for name, other in needed_by.items() if name not in outcomes}
        outcomes |= unit_jobs.start_units(host, valid)
    return [*unit_jobs.as_dependencies(outcomes, needed_by, vms), *(outcomes[name] for name in vms)]


def restart(host: Host, names: Sequence[str] | None) -> list[Outcome]:
    """Stop VMs gracefully and start them again, with their present definitions."""
    vms = begin(host, names, ready=True)
    outcomes = _render_stale(host, vms)
    with locks.locked(host, vms, exclusive=False):
        vms = selection.still_existing(host, names, vms)
        unit_states.require(host, vms)
        states = unit_states.states(host, vms)
        rest = [name for name in vms if name not in outcomes]
        unit_jobs.prepare(host, [states[name] for name in rest])
        timeout = unit_jobs.START_TIMEOUT + unit_jobs.stop_limit(host, [states[name] for name in rest])
        before = {name: states[name].active for name in rest}
        outcomes |= unit_jobs.start_jobs(host, "RestartUnit", before, State.RESTARTED, timeout)
    return [outcomes[name] for name in vms]


def stop(host: Host, names: Sequence[str] | None) -> list[Outcome]:
    """Shut VMs down gracefully, and by force at each VM's timeout. They need not be defined."""
    with changing(host, names, exclusive=False) as vms:
        for name in vms:
            unit_states.require_traces(host, name)
        states = unit_states.states(host, vms)
        outcomes = {
            name: Outcome(name, State.ALREADY_OFF, states[name].active, states[name].active)
            for name in vms
            if states[name].active in unit_states.OFF
        }
        rest = [name for name in vms if name not in outcomes]
        if rest:
            rest, timeout = unit_jobs.stop_plan(host, rest, [states[name] for name in rest])
            results = unit_jobs.run_jobs(host, "StopUnit", rest, timeout)
            for name, result in zip(rest, results, strict=True):
                if states[name].active == "activating" and result.done:
                    # A canceled start is not a failure.
                    host.systemd.reset_failed(paths.unit(name))
            after = unit_states.states(host, rest)
            for name, result in zip(rest, results, strict=True):
                outcomes[name] = _stopped(name, result, states[name].active, after[name].active)
    return [outcomes[name] for name in vms]


def _stopped(name: str, result: JobResult, before: str, after: str) -> Outcome:
    error: QsysdError | None = None
    if result.result == "canceled":
        error = StateError(f"{name}: another command started it again before it was off")
    elif result.refusal:
        error = QsysdError(f"{name}: {result.refusal}", hint=f"systemctl status {result.unit}")
    elif not result.done:
        error = TimeoutExpired(f"{name}: not stopped: {result.result}", hint=f"qsysd kill {name}")
    return failed(name, error, before, after) if error else Outcome(name, State.STOPPED, before, after)


def kill(host: Host, names: Sequence[str] | None) -> list[Outcome]:
    """Switch VMs off without a shutdown of the guest; QEMU flushes its disks if it can.

    They need not be defined.
    """
    with changing(host, names, exclusive=False) as vms:
        for name in vms:
            unit_states.require_traces(host, name)
        before = unit_states.states(host, vms)
        unit_jobs.power_off(host, vms)
        after = unit_states.states(host, vms)
    return [
        Outcome(
            name,
            State.ALREADY_OFF if before[name].active in unit_states.OFF else State.KILLED,
            before[name].active,
            after[name].active,
        )
        for name in vms
    ]


def _render_stale(host: Host, names: Sequence[str]) -> dict[str, Outcome]:
    """Render definitions that were changed by hand, so that they take effect.

    Return the outcome of each VM whose definition is not valid.
    """
    stale = [name for name in names if host.store.is_stale(name)]
    if not stale:
        return {}
    # A seam: rendering imports YAML and jinja2, and definitions are rarely stale.
    from qsysd.host import rendering

    with locks.locked(host, stale):
        _, errors = rendering.render_each(host, stale)
    return {name: failed(name, error) for name, error in errors.items()}


# by QMP


def _by_monitor(host: Host, name: str, action: Callable[[Monitor], State]) -> Outcome:
    """Run an action on the monitor of a running VM."""
    from qsysd.qemu.monitor import Monitor
    from qsysd.runtime.qmp import MonitorError, socket_path

    try:
        unit_states.require(host, [name])
        state = unit_states.states(host, [name])[name]
        if state.active != "active":
            raise StateError(
                f"{name} is not running: it is {unit_states.describe(state)}",
                hint=f"qsysd start {name}" if state.active in unit_states.OFF else f"qsysd status {name}",
            )
        pid = host.systemd.main_pid(state)
        path = socket_path(host.scope, name, host.scope.monitor(name, "cli"))
        with Monitor(path, timeout=MONITOR_TIMEOUT, peer=pid) as monitor:
            return Outcome(name, action(monitor), state.active, state.active)
    except MonitorError as error:
        message = f"{name}: {error.message}"
        return failed(name, QsysdError(message, hint=error.hint or f"qsysd logs {name}"), "active")
    except NotFoundError:
        raise
    except QsysdError as error:
        return failed(name, error)


def _each(host: Host, names: Sequence[str] | None, action: Callable[[Monitor], State]) -> list[Outcome]:
    with changing(host, names, exclusive=False) as vms:
        unit_states.require(host, vms)
        return [_by_monitor(host, name, action) for name in vms]


def pause(host: Host, names: Sequence[str] | None) -> list[Outcome]:
    """Stop the guest's CPUs; its memory is kept."""

    def action(monitor: Monitor) -> State:
        if monitor.run_state() in ("paused", "prelaunch"):
            return State.ALREADY_PAUSED
        monitor.execute("stop")
        return State.PAUSED

    return _each(host, names, action)


def resume(host: Host, names: Sequence[str] | None) -> list[Outcome]:
    """Let the processors of a paused guest run; after an I/O error, the request of the disk is repeated."""

    def action(monitor: Monitor) -> State:
        if monitor.run_state() == "running":
            return State.ALREADY_RUNNING
        monitor.execute("cont")
        return State.RESUMED

    return _each(host, names, action)


def reset(host: Host, names: Sequence[str] | None) -> list[Outcome]:
    """Reset the guest without a shutdown."""

    def action(monitor: Monitor) -> State:
        monitor.execute("system_reset")
        return State.RESET

    return _each(host, names, action)


# at host boot


def enable(host: Host, names: Sequence[str] | None) -> list[Outcome]:
    """Enable VMs to start at host boot."""
    return _enabling(host, names, State.ENABLED)


def disable(host: Host, names: Sequence[str] | None) -> list[Outcome]:
    """Do not start VMs at host boot from now on; a running VM keeps running."""
    return _enabling(host, names, State.DISABLED)


def _enabling(host: Host, names: Sequence[str] | None, state: State) -> list[Outcome]:
    with changing(host, names) as vms:
        for name in vms:
            if state is State.ENABLED:
                unit_states.require(host, [name])
            else:
                unit_states.require_traces(host, name)
        before = unit_states.enabled_names(host)
        if state is State.ENABLED:
            unit_jobs.enable(host, vms)
        else:
            host.systemd.disable([paths.unit(name) for name in vms])
            unit_jobs.sync_links(host)
    return [Outcome(name, state, "enabled" if name in before else "disabled", state.value) for name in vms]

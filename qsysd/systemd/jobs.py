"""Jobs: enqueued, and waited for until each has ended, however often the bus or systemd restarts meanwhile.

StartUnit and its like only enqueue a job. So JobRemoved is subscribed to first, then the call made,
then the job's own path waited for: the signal can come before the reply. A signal can also be lost,
with the bus or in a daemon-reexec: every second, jobs are asked for whether they still exist, and the
unit's state tells how one ended that does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from qsysd.errors import NotFoundError
from qsysd.systemd.bus import MANAGER, PROPERTIES, UNIT, Bus, BusLost, UnitRefused

TICK = 2.0  # seconds of waiting until the first word about it
LOOK_INTERVAL = 1.0  # seconds between two looks at jobs whose signals have not come

# What a unit's ActiveState says of a job that has ended; any other state: another job canceled it.
_ENDED = {
    "StartUnit": {"active": "done", "failed": "failed", "activating": "failed"},
    "RestartUnit": {"active": "done", "failed": "failed", "activating": "failed"},
    "ReloadUnit": {"active": "done", "failed": "failed"},
    "StopUnit": {"inactive": "done", "failed": "done"},
}


class JobResult(NamedTuple):
    """How a job ended: `done`, or systemd's word for why not (failed, canceled, timeout, dependency, …).

    refusal: systemd's words where it took no job for the unit; the result is `refused` then.
    """

    unit: str
    result: str
    refusal: str | None = None

    @property
    def done(self) -> bool:
        """Whether the job did what was asked."""
        return self.result in ("done", "skipped")


class Jobs:
    """The jobs that one process enqueues."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._ended: dict[str, str] = {}
        self._subscribed: Any = None

    def run(
        self,
        method: str,
        units: Iterable[str],
        *,
        timeout: float,
        enqueued: Callable[[], None] | None = None,
        tick: Callable[[float], None] | None = None,
    ) -> list[JobResult]:
        """Run StartUnit, StopUnit, RestartUnit or ReloadUnit on units in parallel and wait for all.

        As `Systemd.run_jobs`.
        """
        self._bus.patiently(self._subscribe)
        jobs: dict[str, str] = {}
        results: dict[str, JobResult] = {}
        units = list(dict.fromkeys(units))
        for unit in units:
            try:
                jobs[unit] = self._enqueue(method, unit)
            except NotFoundError:
                results[unit] = JobResult(unit, "not-found")
            except UnitRefused as error:
                results[unit] = JobResult(unit, "refused", error.message)
        if enqueued:
            enqueued()
        self._wait(method, jobs, timeout, tick)
        for unit, job in jobs.items():
            results[unit] = JobResult(unit, self._ended.pop(job, "waiting"))
        return [results[unit] for unit in units]

    def _subscribe(self) -> None:
        """Have the signals of jobs sent to the connection of now."""
        connection = self._bus.connection()
        if self._subscribed is connection:
            return
        # The only refusal is AlreadySubscribed: the bus gives a connection's name again after its restart,
        # and the reply to an earlier call may have been lost.
        with suppress(UnitRefused):
            self._bus.call(MANAGER, "Subscribe", "()", (), "()")
        if self._subscribed is None:
            self._bus.subscribe("JobRemoved", lambda values: self._ended.update({values[1]: values[3]}))
        self._subscribed = connection

    def _enqueue(self, method: str, unit: str) -> str:
        """Return the path of a new job. Raises NotFoundError, UnitRefused."""
        lost = False

        def once() -> str:
            nonlocal lost
            # systemd may have taken in the call whose reply was lost: a second restart is not wanted.
            job = self._job_of(unit) if lost else ""
            try:
                return job or str(self._bus.call(MANAGER, method, "(ss)", (unit, "replace"), "(o)")[0])
            except BusLost:
                lost = True
                raise

        return str(self._bus.patiently(once))

    def _job_of(self, unit: str) -> str:
        """Return the path of the job that a unit has now; "" without one."""
        (unit_path,) = self._bus.call(MANAGER, "LoadUnit", "(s)", (unit,), "(o)")
        ((number, path),) = self._get(unit_path, UNIT, "Job")
        return str(path) if number else ""

    def _get(self, path: str, interface: str, name: str) -> Any:
        return self._bus.call(PROPERTIES, "Get", "(ss)", (interface, name), "(v)", path=path)

    def _wait(
        self, method: str, jobs: dict[str, str], timeout: float, tick: Callable[[float], None] | None
    ) -> None:
        """Run the main context until all jobs have ended or the time is over."""
        from gi.repository import GLib

        context = GLib.MainContext.default()
        started = time.monotonic()
        next_tick, next_look = TICK, LOOK_INTERVAL
        # Without a timer the context would sleep until the next signal, deadline or not.
        timer = GLib.timeout_add(int(min(LOOK_INTERVAL, TICK / 2, timeout) * 1000) + 1, lambda: True)
        try:
            while self._unfinished(jobs) and (waited := time.monotonic() - started) < timeout:
                if tick and waited >= next_tick:
                    tick(waited)
                    next_tick += 2 * TICK
                context.iteration(True)
                if self._bus.is_closed() or waited >= next_look:
                    next_look = waited + LOOK_INTERVAL
                    self._bus.patiently(lambda: self._look(method, self._unfinished(jobs)))
        finally:
            GLib.source_remove(timer)

    def _unfinished(self, jobs: dict[str, str]) -> dict[str, str]:
        return {unit: job for unit, job in jobs.items() if job not in self._ended}

    def _look(self, method: str, jobs: dict[str, str]) -> None:
        """Find jobs that have ended without their signals. Raises BusLost."""
        from gi.repository import GLib

        self._subscribe()
        gone = [unit for unit, job in jobs.items() if not self._exists(job)]
        # A signal that was sent comes before the answer that the job does not exist.
        context = GLib.MainContext.default()
        while context.pending():
            context.iteration(False)
        for unit in gone:
            if jobs[unit] not in self._ended:
                (path,) = self._bus.call(MANAGER, "LoadUnit", "(s)", (unit,), "(o)")
                (state,) = self._get(path, UNIT, "ActiveState")
                self._ended[jobs[unit]] = _ENDED[method].get(state, "canceled")

    def _exists(self, job: str) -> bool:
        try:
            self._bus.call(MANAGER, "GetJob", "(u)", (int(job.rpartition("/")[2]),), "(o)")
        except NotFoundError:
            return False
        return True

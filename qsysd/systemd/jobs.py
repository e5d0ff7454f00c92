"""Enqueue jobs and wait for them, also while the bus or systemd restarts.

StartUnit and similar methods only enqueue a job. JobRemoved is subscribed to before the call, because the
signal can arrive before the reply. A signal can be lost with the bus or in a daemon-reexec: every second,
jobs are checked for whether they still exist, and the state of the unit shows how a job ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from qsysd.errors import NotFoundError
from qsysd.systemd.bus import MANAGER, PROPERTIES, UNIT, Bus, BusLost, UnitRefused, libraries

TICK = 2.0  # seconds of waiting until progress is first reported
CHECK_INTERVAL = 1.0  # seconds between two checks of jobs whose signals have not arrived

# The result of a job that has ended, by its unit's ActiveState; in other states another job canceled it.
_ENDED = {
    "StartUnit": {"active": "done", "failed": "failed", "activating": "failed"},
    "RestartUnit": {"active": "done", "failed": "failed", "activating": "failed"},
    "ReloadUnit": {"active": "done", "failed": "failed"},
    "StopUnit": {"inactive": "done", "failed": "done"},
}


@dataclass(frozen=True)
class JobResult:
    """The result of a job: `done`, or systemd's result (failed, canceled, timeout, dependency, …).

    refusal: systemd's message if it accepted no job for the unit; the result is `refused` then.
    """

    unit: str
    result: str
    refusal: str | None = None

    @property
    def done(self) -> bool:
        """Whether the job succeeded."""
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
        """Subscribe to the signals of jobs on the present connection."""
        connection = self._bus.connection()
        if self._subscribed is connection:
            return
        # The only refusal is AlreadySubscribed: a restarted bus can give a connection the same name again,
        # and the reply to an earlier call may have been lost.
        with suppress(UnitRefused):
            self._bus.call(MANAGER, "Subscribe", "()", (), "()")
        if self._subscribed is None:
            self._bus.subscribe("JobRemoved", lambda values: self._ended.update({values[1]: values[3]}))
        self._subscribed = connection

    def _enqueue(self, method: str, unit: str) -> str:
        """Return the path of a new job. Raise NotFoundError, UnitRefused."""
        lost = False

        def once() -> str:
            nonlocal lost
            # systemd may have received the call whose reply was lost: it must not restart the unit twice.
            job = self._job_of(unit) if lost else ""
            try:
                return job or str(self._bus.call(MANAGER, method, "(ss)", (unit, "replace"), "(o)")[0])
            except BusLost:
                lost = True
                raise

        return str(self._bus.patiently(once))

    def _job_of(self, unit: str) -> str:
        """Return the path of the present job of a unit; "" without one."""
        (unit_path,) = self._bus.call(MANAGER, "LoadUnit", "(s)", (unit,), "(o)")
        ((number, path),) = self._get(unit_path, UNIT, "Job")
        return str(path) if number else ""

    def _get(self, path: str, interface: str, name: str) -> Any:
        return self._bus.call(PROPERTIES, "Get", "(ss)", (interface, name), "(v)", path=path)

    def _wait(
        self, method: str, jobs: dict[str, str], timeout: float, tick: Callable[[float], None] | None
    ) -> None:
        """Run the main context until all jobs have ended or the timeout has passed."""
        _, glib = libraries()
        context = glib.MainContext.default()
        started = time.monotonic()
        next_tick, next_check = TICK, CHECK_INTERVAL
        # Without a timer the context would sleep until the next signal.
        timer = glib.timeout_add(int(min(CHECK_INTERVAL, TICK / 2, timeout) * 1000) + 1, lambda: True)
        try:
            while self._unfinished(jobs) and (waited := time.monotonic() - started) < timeout:
                if tick and waited >= next_tick:
                    tick(waited)
                    next_tick += 2 * TICK
                context.iteration(True)
                if self._bus.is_closed() or waited >= next_check:
                    next_check = waited + CHECK_INTERVAL
                    self._bus.patiently(lambda: self._check(method, self._unfinished(jobs)))
        finally:
            glib.source_remove(timer)

    def _unfinished(self, jobs: dict[str, str]) -> dict[str, str]:
        return {unit: job for unit, job in jobs.items() if job not in self._ended}

    def _check(self, method: str, jobs: dict[str, str]) -> None:
        """Find jobs that have ended without their signals. Raise BusLost."""
        _, glib = libraries()
        self._subscribe()
        ended = [unit for unit, job in jobs.items() if not self._exists(job)]
        # The signal of a job arrives before the reply that the job does not exist.
        context = glib.MainContext.default()
        while context.pending():
            context.iteration(False)
        for unit in ended:
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

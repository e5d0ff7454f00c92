"""The client for operations of this host: it calls them, and records those that change it in the journal."""

from __future__ import annotations

import time
from typing import Any

from qsysd.host.context import Host
from qsysd.host.progress import Progress
from qsysd.requests import registry
from qsysd.requests.request import Request


def this_host(progress: Progress) -> Host:
    """Return this host. progress: the receiver of its progress and warnings."""
    return Host(progress=progress)


def call(host: Host, request: Request) -> Any:
    """Run a request on this host and return its result. Raise what the operation raises."""
    operation = registry.find(request.operation)
    function = operation.load()
    if not operation.changes(request.arguments):
        return function(host, **request.arguments)
    # A seam: operations that only read, such as a list, are not recorded.
    from qsysd.requests import audit

    started = time.monotonic()
    ended: Any = None
    try:
        ended = function(host, **request.arguments)
        return ended
    except BaseException as error:
        ended = error
        raise
    finally:
        audit.record(host.scope.journal_socket, request, audit.caller(), ended, time.monotonic() - started)

"""The client for operations of this host: it calls them."""

from __future__ import annotations

from typing import Any

from qsysd.host.context import Host
from qsysd.requests import registry
from qsysd.requests.request import Request


def call(host: Host, request: Request) -> Any:
    """Run a request on this host and return its result. Raises what the operation raises."""
    return registry.find(request.operation).load()(host, **request.arguments)

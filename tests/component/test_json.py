"""The keys of --json output. Scripts rely on them: keys may be added, and none may be removed or renamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from test_command import CREATE, Run, create, run

__all__ = ["run"]

LISTED = (
    "name", "unit", "active", "sub", "guest", "enabled", "pid", "ip", "image", "memory_mib", "cpus",
    "pending_memory_mib", "pending_cpus", "problem",
)  # fmt: skip
STATUS = (
    *LISTED, "result", "restarts", "crash_loop", "uptime", "uuid", "machine", "accel", "accelerator", "user",
    "disks", "nics", "memory_current", "pending",
)  # fmt: skip
IMAGE = (
    "name", "path", "source", "sha256", "default_user", "cloud_init", "created", "virtual_size", "file_size",
    "problem",
)  # fmt: skip


@pytest.fixture
def output(run: Run) -> Callable[..., Any]:
    """Return the JSON that a command prints, on a host with the VM web1."""
    create(run)
    return lambda *words: json.loads(run(*words, "--json").stdout)


def test_vms_and_images_keep_their_keys(output: Callable[..., Any]) -> None:
    assert tuple(output("list")[0]) == LISTED
    (status,) = output("status", "web1")
    assert tuple(status) == STATUS
    assert tuple(status["disks"][0]) == ("path", "used", "size")
    assert tuple(status["nics"][0]) == ("name", "network", "mac", "address", "tap")
    assert tuple(output("image", "list")[0]) == IMAGE
    assert tuple(output("image", "info", "tiny")) == (*IMAGE, "used_by", "use_unknown")
    assert output("image", "info", "tiny")["used_by"] == ["web1"]


def test_other_verbs_keep_their_keys(run: Run, output: Callable[..., Any]) -> None:
    created = run("create", "web2", *CREATE[2:], "--json")
    assert tuple(json.loads(created.stdout)) == LISTED
    assert tuple(output("ip", "web1")) == ("name", "addresses")
    assert output("render", "--check") == {"web1": [], "web2": []}
    assert tuple(output("doctor")[0]) == ("level", "subject", "message", "remedy")

"""Lab hosts for tests with a real systemd: one per suite and session, and separate ones.

Fixtures:

    lab           the lab itself: `lab.host(name)` for a host that the test makes by itself
    host          a booted bookworm host with the qsysd package and the tiny guest, the session's own
    trixie_host   the same on trixie
    any_host      runs the test twice, on the one and on the other
    fresh_host    a factory of throw-away hosts, for tests that break one
    vm            a factory of VM names; the VMs are deleted when the test ends

    def test_start(host: LabHost, vm: VMFactory) -> None:
        name = vm()
        host.qsysd("create", name, *tiny_options())
        host.wait_property(f"qemu-vm@{name}", "ActiveState", "active")

$QSYSD_DEB names the package to test, $QSYSD_LAB_KEEP leaves the session's hosts up and takes them
up again in the next session, $QSYSD_TEST_SUITES ("bookworm") leaves out the tests on the others.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

from labnet import Network
from labtest import LabHost, find_package, lab_folder, remove

FreshHost = Callable[..., LabHost]
VMFactory = Callable[..., str]

HOST_FIXTURES = ("host", "trixie_host", "any_host")


# The longest files first, so that no process waits long for the others at the end.
LONGEST = ("test_life.py", "test_debian_guest.py", "test_faults_create.py", "test_states.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


class Lab:
    """The lab of this test session. Each worker of pytest-xdist has separate hosts in it."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.folder = folder
        self.worker = worker
        self.made: list[LabHost] = []

    def host(self, name: str) -> LabHost:
        """Return a host of this worker, which is removed at the end of the session."""
        host = LabHost(self.folder, f"{name}{self.worker}")
        self.made.append(host)
        return host

    def session_host(self, suite: str) -> LabHost:
        """Return the booted host with the qsysd package for this session."""
        require(suite)
        host = self.host({"bookworm": "test", "trixie": "test13"}[suite])
        if not os.environ.get("QSYSD_LAB_KEEP"):
            host.down()
        host.up(suite)
        host.install(find_package())
        return host

    def close(self) -> None:
        """Remove the hosts of the session, and the network if no other host uses it."""
        for host in self.made:
            remove(host)
        Network(self.folder).down_if_unused()


def require(suite: str) -> None:
    """Skip the test if its suite is not to be tested; fail it without root privileges."""
    if suite not in os.environ.get("QSYSD_TEST_SUITES", "bookworm,trixie").split(","):
        pytest.skip(f"{suite} is not in QSYSD_TEST_SUITES")
    if os.geteuid() != 0:
        pytest.fail("the lab requires root: sudo make test")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Give the lab, and remove its hosts at the end."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    lab = Lab(lab_folder(), f"-{worker}" if worker else "")
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def session_host(lab: Lab) -> LabHost:
    """Give the session's bookworm host."""
    return lab.session_host("bookworm")


@pytest.fixture(scope="session")
def session_trixie_host(lab: Lab) -> LabHost:
    """Give the session's trixie host."""
    return lab.session_host("trixie")


@pytest.fixture
def host(session_host: LabHost) -> LabHost:
    """Give the session's bookworm host, up, with qsysd and the tiny guest."""
    session_host.up()
    session_host.forget_journal()
    return session_host


@pytest.fixture
def trixie_host(session_trixie_host: LabHost) -> LabHost:
    """Give the session's trixie host, up, with qsysd and the tiny guest."""
    session_trixie_host.up()
    session_trixie_host.forget_journal()
    return session_trixie_host


@pytest.fixture(params=["bookworm", "trixie"])
def any_host(request: pytest.FixtureRequest) -> LabHost:
    """Give the host of each suite, one after the other."""
    host: LabHost = request.getfixturevalue({"bookworm": "host", "trixie": "trixie_host"}[request.param])
    return host


@pytest.fixture
def fresh_host(lab: Lab) -> Iterator[FreshHost]:
    """Give a factory of hosts for one test: `fresh_host(suite="bookworm", install=True)`."""
    made: list[LabHost] = []

    def make(suite: str = "bookworm", *, install: bool = True) -> LabHost:
        require(suite)
        host = LabHost(lab.folder, f"fresh{len(made) + 1}{lab.worker}")
        host.down()
        made.append(host)
        host.up(suite)
        if install:
            host.install(find_package())
        return host

    yield make
    for host in made:
        host.down()


@pytest.fixture
def vm(request: pytest.FixtureRequest) -> Iterator[VMFactory]:
    """Give a factory of VM names, made from the test's: `vm()`, or `vm("web")`, or `vm(on=trixie_host)`.

    A VM is looked for on the test's host, or on the one given, and deleted there when the test ends.
    """
    made: list[tuple[LabHost, str]] = []
    stem = re.sub("[^a-z0-9]+", "-", request.node.originalname.removeprefix("test_").lower())

    def name(label: str = "", *, on: LabHost | None = None) -> str:
        fixture = next((known for known in HOST_FIXTURES if known in request.fixturenames), "host")
        host = on or request.getfixturevalue(fixture)
        VM_COUNT[0] += 1
        tail = f"{f'-{label}' if label else ''}-{VM_COUNT[0]}"
        new = f"{stem[: 28 - len(tail)].strip('-')}{tail}"
        made.append((host, new))
        return new

    yield name
    for host, new in made:
        if host.leader():
            host.wait_until(partial(delete, host, new), timeout=60, what=f"{new} to be deleted")


def delete(host: LabHost, name: str) -> bool | None:
    """Delete a VM; return whether it was deleted. A command of the test may still hold its lock."""
    if host.exists(f"/etc/qsysd/vms/{name}.yaml"):
        host.qsysd("kill", name, check=False)
        host.qsysd("delete", "--yes", name, check=False)
    return not host.exists(f"/etc/qsysd/vms/{name}.yaml") or None


# Number of VM names in this session, to generate unique names.
VM_COUNT = [0]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the state of its hosts to the report of a failed test."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed and isinstance(item, pytest.Function):
        seen = {value.name: value for value in item.funcargs.values() if isinstance(value, LabHost)}
        for host in seen.values():
            report.sections.append((f"host {host.name}", host.report()))

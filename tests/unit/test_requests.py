"""Requests: plain values in and out, and one journal entry for each operation that changes the host."""

from __future__ import annotations

import dataclasses
import socket
import struct
import time
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from qsysd.errors import KINDS, InvalidError, QsysdError, StateError
from qsysd.host.context import Host
from qsysd.host.outcomes import Outcome, State, failed
from qsysd.operations import power
from qsysd.paths import Scope
from qsysd.requests import audit, client, registry
from qsysd.requests.audit import Caller
from qsysd.requests.request import Request

# what travels


def not_plain(hint: Any, seen: frozenset[type] = frozenset()) -> list[str]:
    """Return what of a type is not plain: built-in values, enums of str, frozen dataclasses, containers."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [problem for each in arguments for problem in not_plain(each, seen)]
    if origin is not None:
        if origin.__module__ not in ("builtins", "collections.abc"):
            return [str(hint)]
        return [problem for each in arguments if each is not ... for problem in not_plain(each, seen)]
    if hint in (type(None), bool, int, float, str) or hint in seen:
        return []
    if isinstance(hint, type) and issubclass(hint, StrEnum | QsysdError):
        return []
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not hint.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            return [f"{hint.__name__} is not frozen"]
        fields = typing.get_type_hints(hint)
        return [
            f"{hint.__name__}.{field.name}: {problem}"
            for field in dataclasses.fields(hint)
            for problem in not_plain(fields[field.name], seen | {hint})
        ]
    return [str(hint)]


def test_what_is_plain() -> None:
    @dataclasses.dataclass
    class Open:
        name: str

    assert not not_plain(dict[str, list[State | None]])
    assert not not_plain(list[Outcome])
    for odd in (Any, object, Path, Host, dict[str, Any], list[Path | None], Open, Iterator[Path]):
        assert not_plain(odd), odd


@pytest.mark.parametrize("name", registry.OPERATIONS)
def test_an_operation_takes_and_returns_plain_values(name: str) -> None:
    hints = typing.get_type_hints(registry.find(name).load())
    _, *types_ = hints.items()
    assert hints["host"] is Host
    assert not {key: not_plain(hint) for key, hint in types_ if not_plain(hint)}


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"unknown operation 'vm\.explode'"):
        registry.find("vm.explode")


@pytest.mark.parametrize("kind", KINDS.values())
def test_an_error_travels_with_its_kind_hint_and_status(kind: type[QsysdError]) -> None:
    error = QsysdError.from_dict(kind("web1: failed", hint="qsysd status web1", code=5).to_dict())
    assert type(error) is kind
    assert (error.message, error.hint, error.code) == ("web1: failed", "qsysd status web1", 5)


# the journal entry


def decode(datagram: bytes) -> dict[str, list[str]]:
    """Return the fields of a datagram as journald reads them."""
    found: dict[str, list[str]] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        key, mark, value = line.partition(b"=")
        if not mark:
            (length,) = struct.unpack("<Q", rest[:8])
            value, datagram = rest[8 : 8 + length], rest[8 + length :]
            assert datagram[:1] == b"\n"
            datagram = datagram[1:]
        else:
            datagram = rest
        found.setdefault(key.decode(), []).append(value.decode())
    return found


ROOT = Caller(0, "alice")


def entry(
    ended: object, *, operation: str = "vm.start", who: Caller = ROOT, **arguments: Any
) -> dict[str, list[str]]:
    """Return the fields of an entry as journald reads them."""
    request = Request(operation, arguments, "0123456789abcdef")
    return decode(audit.encode(audit.fields(request, who, ended, 1.25)))


def test_an_entry_has_what_on_which_vm_by_whom_result_duration_and_id() -> None:
    assert entry([Outcome("web1", State.STARTED)], names=["web1", "web2"]) == {
        "MESSAGE": ["vm.start web1 web2: done (1.250 s, uid 0, sudo user alice, request 0123456789abcdef)"],
        "PRIORITY": ["6"],
        "SYSLOG_IDENTIFIER": ["qsysd"],
        "QSYSD_REQUEST": ["0123456789abcdef"],
        "QSYSD_OPERATION": ["vm.start"],
        "QSYSD_VM": ["web1", "web2"],
        "QSYSD_RESULT": ["done"],
        "QSYSD_SECONDS": ["1.250"],
        "QSYSD_UID": ["0"],
        "QSYSD_SUDO_USER": ["alice"],
    }
    assert "QSYSD_SUDO_USER" not in entry(None, who=Caller(0, ""))
    assert entry(None, operation="image.remove", names=["debian"])["QSYSD_IMAGE"] == ["debian"]


def test_an_entry_without_names_in_the_request_has_those_of_the_result() -> None:
    outcomes = [Outcome("web1", State.STOPPED), Outcome("web2", State.STOPPED)]
    assert entry(outcomes, names=None)["QSYSD_VM"] == ["web1", "web2"]


@pytest.mark.parametrize(
    ("ended", "result"),
    [
        (StateError("web1: not now\nsecond line"), "StateError"),
        ([Outcome("web2", State.STARTED), failed("web1", StateError("web1: not now"))], "StateError"),
        (KeyboardInterrupt("SIGTERM"), "interrupted"),
        (OSError(28, "No space left on device"), "OSError"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_a_failure_is_recorded_with_the_kind_of_its_error(ended: object, result: str) -> None:
    found = entry(ended, names=["web1"])
    assert found["QSYSD_RESULT"] == [result]
    assert found["PRIORITY"] == ["4"]
    assert f"vm.start web1: {result}" in found["MESSAGE"][0]
    assert "\n" not in found["MESSAGE"][0]


@pytest.mark.parametrize("value", ["web1\nQSYSD_RESULT=done", "a=b", "", "\n", "ü\udcff", "x\0y"])
def test_no_value_adds_or_changes_a_field(value: str) -> None:
    found = entry(StateError(value), who=Caller(1000, value or "x"), names=[value])
    assert set(found) == {
        "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "QSYSD_REQUEST", "QSYSD_OPERATION", "QSYSD_VM",
        "QSYSD_RESULT", "QSYSD_SECONDS", "QSYSD_UID", "QSYSD_SUDO_USER",
    }  # fmt: skip
    assert found["QSYSD_RESULT"] == ["StateError"]
    assert len(found["QSYSD_VM"]) == 1
    assert "\n" not in found["MESSAGE"][0]


def test_an_entry_stays_below_the_limits_of_journald() -> None:
    names = [f"web{number}" for number in range(2000)]
    found = entry(StateError("x" * 100_000), names=names)
    assert sum(map(len, found.values())) < 1024
    assert "web9 and 1990 more" in found["MESSAGE"][0]
    assert len(audit.encode(audit.fields(Request("vm.start", {"names": names}), ROOT, None, 1))) < 64 * 1024


# on a host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a host below the current directory: the path of its journal's socket is short."""
    monkeypatch.chdir(tmp_path)
    return Host(Scope(""))


@pytest.fixture
def journal(host: Host) -> Iterator[socket.socket]:
    """Give the socket that journald would listen on."""
    Path(host.scope.journal_socket).parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(host.scope.journal_socket)
        listener.setblocking(False)
        yield listener


def received(journal: socket.socket) -> list[dict[str, list[str]]]:
    """Return the entries that were sent."""
    found = []
    try:
        while True:
            found.append(decode(journal.recv(1 << 20)))
    except BlockingIOError:
        return found


def operation(monkeypatch: pytest.MonkeyPatch, ended: object) -> None:
    """Replace `stop` and `list` by operations that return or raise something."""

    def call(_host: Host, names: Any = None) -> object:
        if isinstance(ended, BaseException):
            raise ended
        return ended

    monkeypatch.setattr(power, "stop", call)
    monkeypatch.setattr("qsysd.operations.list.list_vms", call)


def test_a_change_is_recorded_once_and_a_query_is_not(
    monkeypatch: pytest.MonkeyPatch, host: Host, journal: socket.socket
) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    outcomes = [Outcome("web1", State.STOPPED)]
    operation(monkeypatch, outcomes)
    request = Request("vm.stop", {"names": ["web1"]})
    assert client.call(host, request) is outcomes
    assert client.call(host, Request("vm.list", {})) is outcomes
    (found,) = received(journal)
    assert found["QSYSD_REQUEST"] == [request.id]
    assert found["QSYSD_SUDO_USER"] == ["alice"]


@pytest.mark.parametrize(
    "error", [StateError("not now"), KeyboardInterrupt(), OSError(5, "Input/output error")]
)
def test_what_an_operation_raises_is_recorded_and_raised(
    monkeypatch: pytest.MonkeyPatch, host: Host, journal: socket.socket, error: BaseException
) -> None:
    operation(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        client.call(host, Request("vm.stop", {"names": ["web1"]}))
    assert raised.value is error
    assert len(received(journal)) == 1


def test_a_dry_run_changes_nothing() -> None:
    dry = registry.Operation("delete", "delete", registry.CHANGE, dry_run="dry_run")
    assert dry.changes({"names": ["web1"]})
    assert dry.changes({"names": ["web1"], "dry_run": False})
    assert not dry.changes({"names": ["web1"], "dry_run": True})
    assert not registry.find("vm.list").changes({})


def test_a_host_without_a_journal_runs_operations_too(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    operation(monkeypatch, [])
    assert client.call(host, Request("vm.stop", {"names": []})) == []


def test_a_journal_that_does_not_read_delays_nothing(
    monkeypatch: pytest.MonkeyPatch, host: Host, journal: socket.socket
) -> None:
    operation(monkeypatch, [])
    began = time.monotonic()
    for _ in range(2000):
        client.call(host, Request("vm.stop", {"names": ["x" * 1000]}))
    assert time.monotonic() - began < 10


def test_a_bug_in_the_record_does_not_hide_the_result(
    monkeypatch: pytest.MonkeyPatch, host: Host, journal: socket.socket
) -> None:
    operation(monkeypatch, [])
    monkeypatch.setattr(audit, "fields", lambda *arguments: 1 / 0)
    assert client.call(host, Request("vm.stop", {"names": []})) == []


def test_ids_differ() -> None:
    assert len({Request("vm.list", {}).id for _ in range(1000)}) == 1000

"""The monitor client against a peer that is late, busy, wrong, or hostile: QEMU is not trusted."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qmp_peer import GREETING, Connection, Peer, Refuse, Script

from qsysd.qemu.monitor import EVENTS_MAX, Monitor
from qsysd.runtime import qmp
from qsysd.runtime.qmp import (
    Client,
    CommandRefused,
    MonitorBusy,
    MonitorError,
    MonitorGone,
    MonitorTimeout,
    RunStateQuery,
)

SHORT = 0.2  # seconds that a client waits in a test in which nothing comes
Serve = Callable[[Script], Peer]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start peers at ./qmp.sock, a short path however long that of the temporary directory is."""
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        yield lambda script: stack.enter_context(Peer("qmp.sock", script))


def connect(timeout: float = 5.0) -> Monitor:
    return Monitor("qmp.sock", timeout=timeout)


# The CLI's client, and the units': what a peer does to the one it does to the other.
CLIENTS = pytest.mark.parametrize("client", [Monitor, Client])
AnyClient = type[Monitor] | type[Client]


def ask(monitor: Monitor | Client, command: str, timeout: float | None = None) -> None:
    """Run a command, whatever it returns."""
    monitor.execute(command, timeout=timeout)


def raw(greeting: bytes) -> Script:
    """Return a script that sends bytes in the greeting's place and stays."""

    def script(connection: Connection) -> None:
        connection.send_bytes(greeting)
        while connection.receive():
            pass

    return script


def test_a_command_and_its_reply(serve: Serve) -> None:
    peer = serve(lambda connection: connection.serve({"query-status": {"status": "running"}, "stop": {}}))
    with connect() as monitor:
        assert monitor.execute("query-status") == {"status": "running"}
        assert monitor.execute("stop") == {}
    assert peer.commands == ["qmp_capabilities", "query-status", "stop"]


def test_arguments_are_sent(serve: Serve) -> None:
    received: list[object] = []

    def script(connection: Connection) -> None:
        connection.greet()
        command = connection.receive()
        assert command
        received.append(command)
        connection.send({"return": None, "id": command["id"]})

    serve(script)
    with connect() as monitor:
        assert monitor.execute("device_del", {"id": "net0 'é'"}) is None
    assert received == [{"execute": "device_del", "id": 2, "arguments": {"id": "net0 'é'"}}]


def test_a_refusal_has_the_class_and_text_of_qemus_error(serve: Serve) -> None:
    def refuse() -> None:
        raise Refuse("Device 'x' not found", "DeviceNotFound")

    serve(lambda connection: connection.serve({"device_del": refuse}))
    with connect() as monitor, pytest.raises(CommandRefused) as caught:
        monitor.execute("device_del", {"id": "x"})
    assert (caught.value.kind, caught.value.description) == ("DeviceNotFound", "Device 'x' not found")
    assert caught.value.message == "device_del: Device 'x' not found"


@CLIENTS
def test_a_refused_negotiation_is_an_error(client: AnyClient, serve: Serve) -> None:
    def script(connection: Connection) -> None:
        connection.send(GREETING)
        connection.answer_one({})

    serve(script)
    with pytest.raises(CommandRefused):
        client("qmp.sock")


# a question that is answered later


def test_a_query_is_sent_before_the_greeting_arrives(serve: Serve) -> None:
    put = threading.Event()

    def script(connection: Connection) -> None:
        assert put.wait(20)
        connection.serve({"query-status": {"status": "io-error"}})

    peer = serve(script)
    with RunStateQuery("qmp.sock", timeout=20) as question:
        put.set()  # nothing was waited for until here
        assert question.answer(peer=os.getpid()) == "io-error"
    assert peer.commands == ["qmp_capabilities", "query-status"]


def test_a_reply_of_another_process_is_refused(serve: Serve) -> None:
    serve(lambda connection: connection.serve({"query-status": {"status": "running"}}))
    with (
        RunStateQuery("qmp.sock", timeout=20) as question,
        pytest.raises(MonitorGone, match="not that of"),
    ):
        question.answer(peer=os.getppid())


def test_a_query_that_is_refused_or_not_answered_is_an_error(serve: Serve) -> None:
    serve(lambda connection: connection.serve({}))
    with RunStateQuery("qmp.sock", timeout=20) as question, pytest.raises(CommandRefused):
        question.answer(peer=os.getpid())
    with Monitor("qmp.sock"):
        late = RunStateQuery("qmp.sock", timeout=SHORT)
        with late, pytest.raises(MonitorBusy):
            late.answer(peer=os.getpid())


# events


def test_events_between_a_command_and_its_reply_are_kept(serve: Serve) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        command = connection.receive()
        assert command
        connection.event("POWERDOWN")
        connection.send({"return": "another's", "id": 999})
        connection.send({"return": "nobody's"})
        connection.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        connection.send({"return": "mine", "id": command["id"]})
        connection.receive()

    serve(script)
    with connect() as monitor:
        assert monitor.execute("system_powerdown") == "mine"
        assert [event["event"] for event in monitor.events] == ["POWERDOWN", "SHUTDOWN"]
        # what was already there is found, and taken out
        assert monitor.wait_event("SHUTDOWN", "STOP", timeout=0)["data"]["reason"] == "guest-shutdown"
        assert [event["event"] for event in monitor.events] == ["POWERDOWN"]


def test_wait_event_returns_the_event(serve: Serve) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        connection.event("RTC_CHANGE")
        connection.event("DEVICE_DELETED", device="x")
        connection.receive()

    serve(script)
    with connect() as monitor:
        assert monitor.wait_event("DEVICE_DELETED", timeout=5)["data"] == {"device": "x"}
        with pytest.raises(MonitorTimeout):
            monitor.wait_event("DEVICE_DELETED", timeout=SHORT)


def test_events_before_and_after_the_greeting_are_accepted(serve: Serve) -> None:
    def script(connection: Connection) -> None:
        connection.send(GREETING)
        connection.event("RESUME")
        connection.answer_one({"qmp_capabilities": {}})
        connection.receive()

    serve(script)
    with connect() as monitor:
        assert [event["event"] for event in monitor.events] == ["RESUME"]


@CLIENTS
def test_messages_are_read_in_pieces_and_several_at_once(client: AnyClient, serve: Serve) -> None:
    def script(connection: Connection) -> None:
        for byte in json.dumps(GREETING).encode() + b"\r\n":
            connection.send_bytes(bytes([byte]))
        connection.answer_one({"qmp_capabilities": {}})
        command = connection.receive()
        assert command
        events = b'{"event": "A"}\n{"event": "B"}\r\n'
        connection.send_bytes(events + json.dumps({"return": 1, "id": command["id"]}).encode() + b"\n")
        connection.receive()

    serve(script)
    with client("qmp.sock") as monitor:
        if isinstance(monitor, Monitor):
            assert monitor.execute("x") == 1
            assert len(monitor.events) == 2
        else:
            assert monitor.execute("x").strip() == b'{"return":1,"id":2}'


def flood(connection: Connection) -> None:
    connection.greet()
    line = b'{"event": "BLOCK_IO_ERROR", "data": {}}\n' * 500
    while True:
        connection.send_bytes(line)


@CLIENTS
def test_a_flood_of_events_ends_at_the_deadline(client: AnyClient, serve: Serve) -> None:
    serve(flood)
    with client("qmp.sock") as monitor, pytest.raises(MonitorTimeout):
        ask(monitor, "query-status", SHORT)


def test_a_flood_of_events_does_not_fill_the_memory(serve: Serve) -> None:
    serve(flood)
    with connect() as monitor:
        with contextlib.suppress(MonitorTimeout):
            monitor.wait_event("NEVER", timeout=3 * SHORT)
        assert len(monitor.events) == EVENTS_MAX


# late, busy, gone


@CLIENTS
def test_a_late_greeting_is_accepted(client: AnyClient, serve: Serve) -> None:
    def script(connection: Connection) -> None:
        time.sleep(SHORT)
        connection.serve({"query-status": {"status": "running"}})

    serve(script)
    with client("qmp.sock", timeout=10) as monitor:
        assert monitor.run_state() == "running"


@CLIENTS
def test_a_monitor_that_another_client_holds_is_busy(client: AnyClient, serve: Serve) -> None:
    serve(lambda connection: connection.serve({}))
    with connect(), pytest.raises(MonitorBusy, match="another client holds it"):
        client("qmp.sock", timeout=SHORT)


@CLIENTS
def test_a_monitor_with_a_full_backlog_is_busy(client: AnyClient, serve: Serve) -> None:
    serve(lambda connection: connection.serve({}))
    with connect(), contextlib.ExitStack() as stack:
        # the kernel's queue for the listener is full then: EAGAIN, at once
        for _ in range(8):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect("qmp.sock")
        with pytest.raises(MonitorBusy):
            client("qmp.sock", timeout=SHORT)


def test_the_next_client_is_served_after_the_first_disconnects(serve: Serve) -> None:
    peer = serve(lambda connection: connection.serve({"query-status": {"status": "running"}}))
    for _ in range(3):
        with connect() as monitor:
            assert monitor.run_state() == "running"
    assert peer.clients == 3


@CLIENTS
def test_a_greeting_without_a_reply_to_the_negotiation_times_out(client: AnyClient, serve: Serve) -> None:
    serve(raw(json.dumps(GREETING).encode() + b"\n"))
    with pytest.raises(MonitorTimeout, match="qmp_capabilities: no answer"):
        client("qmp.sock", timeout=SHORT)


@CLIENTS
def test_no_reply_times_out(client: AnyClient, serve: Serve) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        connection.receive()
        connection.receive()

    serve(script)
    with (
        client("qmp.sock") as monitor,
        pytest.raises(MonitorTimeout, match="query-status: no answer from QEMU in time"),
    ):
        ask(monitor, "query-status", SHORT)


@CLIENTS
def test_a_qemu_that_does_not_read_times_out(client: AnyClient, serve: Serve) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        assert done.wait(20)

    done = threading.Event()
    serve(script)
    with client("qmp.sock") as monitor:
        words = ""
        while "does not read its monitor" not in words:
            with pytest.raises(MonitorTimeout) as caught:  # the first ones fit into the socket's buffer
                ask(monitor, "x" * 100_000, SHORT)
            words = caught.value.message
        done.set()


def test_a_late_reply_is_not_taken_for_that_of_the_next_command(serve: Serve) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        first = connection.receive()
        second = connection.receive()
        assert first and second
        connection.send({"return": "late", "id": first["id"]})
        connection.send({"return": "in time", "id": second["id"]})
        connection.receive()

    serve(script)
    with connect() as monitor:
        with pytest.raises(MonitorTimeout):
            monitor.execute("first", timeout=SHORT)
        assert monitor.execute("second") == "in time"


@CLIENTS
def test_an_end_before_the_greeting(client: AnyClient, serve: Serve) -> None:
    serve(lambda connection: None)
    with pytest.raises(MonitorGone, match="QEMU closed the monitor"):
        client("qmp.sock")


@CLIENTS
def test_an_end_in_the_middle_of_a_reply(client: AnyClient, serve: Serve) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        connection.receive()
        connection.send_bytes(b'{"return": {"status": "run')

    serve(script)
    with client("qmp.sock") as monitor, pytest.raises(MonitorGone):
        monitor.run_state()


@CLIENTS
def test_a_command_after_the_end(client: AnyClient, serve: Serve) -> None:
    serve(lambda connection: connection.greet())
    with client("qmp.sock") as monitor:
        for _ in range(2):
            with pytest.raises(MonitorGone):
                monitor.run_state()


@CLIENTS
@pytest.mark.parametrize("kind", ["nothing", "stale", "file", "too long"])
def test_no_socket_or_none_that_listens(
    client: AnyClient, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = "qmp.sock"
    if kind == "stale":
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path)
    elif kind == "file":
        Path(path).touch()
    elif kind == "too long":
        path = "x" * 108
    with pytest.raises(MonitorGone, match="no monitor at"):
        client(path, timeout=SHORT)


@CLIENTS
def test_a_failed_connect_leaves_nothing_open(client: AnyClient, serve: Serve) -> None:
    serve(lambda connection: None)
    before = set(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always")
        with pytest.raises(MonitorGone):
            client("qmp.sock")
        gc.collect()
    assert not left_open
    # the peer's own end may still be on its way out
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1


# garbage: a guest that has broken out of QEMU may say anything

GARBAGE = [
    b"\n", b"SSH-2.0-x\r\n", b"{}\n", b"[]\n", b"null\n", b'"QMP"\n', b"\xff\xfe\n", b"{\n",
    b'{"QMP": 1\n', b'{"QMP" 1\n', b"9" * 5000 + b"\n",
    b"[" * 100_000 + b"\n", b'{"a":' * 100_000 + b"\n",
]  # fmt: skip


@CLIENTS
@pytest.mark.parametrize("greeting", GARBAGE, ids=range(len(GARBAGE)))
def test_a_greeting_that_is_not_qmp_is_an_error(client: AnyClient, serve: Serve, greeting: bytes) -> None:
    serve(raw(greeting))
    with pytest.raises(MonitorGone, match="is not a QMP socket"):
        client("qmp.sock")


@CLIENTS
def test_a_line_without_end(client: AnyClient, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "LINE_MAX", 1_000_000)

    def script(connection: Connection) -> None:
        while True:
            connection.send_bytes(b"x" * 65536)

    serve(script)
    with pytest.raises(MonitorGone):
        client("qmp.sock", timeout=20)


ODD_REPLIES = [
    {}, {"return": None}, {"return": []}, {"return": {}}, {"return": {"status": None}},
    {"return": {"status": ["running"]}},
    {"return": {"status": ""}}, {"return": {"status": "\x1b]0;pwned\x07"}},
    {"return": {"status": "x" * 1000}}, {"return": 1},
    {"return": {"status": "running\n"}}, {"error": None}, {"error": {}}, {"error": "no"},
    {"error": {"class": 1, "desc": []}},
    {"error": {"class": "GenericError"}},
]  # fmt: skip


@CLIENTS
@pytest.mark.parametrize("reply", ODD_REPLIES, ids=json.dumps)
def test_an_odd_reply_is_an_error_of_the_monitor(
    client: AnyClient, serve: Serve, reply: dict[str, object]
) -> None:
    def script(connection: Connection) -> None:
        connection.greet()
        command = connection.receive()
        assert command
        connection.send({"id": command["id"], **reply})
        connection.receive()

    serve(script)
    with client("qmp.sock") as monitor, pytest.raises(MonitorError):
        monitor.run_state()


@CLIENTS
def test_control_characters_in_qemus_messages_are_replaced(client: AnyClient, serve: Serve) -> None:
    def refuse() -> None:
        raise Refuse("no\x1b[2J\x9b1mway\r\x00\u202e")

    serve(lambda connection: connection.serve({"cont": refuse}))
    with client("qmp.sock") as monitor, pytest.raises(CommandRefused) as caught:
        ask(monitor, "cont")
    assert caught.value.message.isprintable()
    assert "way" in caught.value.message


@CLIENTS
@pytest.mark.parametrize("state", ["running", "paused", "io-error", "internal-error", "guest-panicked"])
def test_the_run_state(client: AnyClient, serve: Serve, state: str) -> None:
    serve(lambda connection: connection.serve({"query-status": {"status": state, "running": True}}))
    with client("qmp.sock") as monitor:
        assert monitor.run_state() == state

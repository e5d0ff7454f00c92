"""What a command shows of its progress: on a terminal, and without one."""

from __future__ import annotations

import io
import os
import sys

import pytest

from qsysd.cli.progress import Progress


def shown_by(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> tuple[Progress, io.StringIO]:
    """Return the progress of a command, and what it writes."""
    error = io.StringIO()
    monkeypatch.setattr(error, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setenv("TERM", "xterm")
    return Progress(), error


def test_a_terminal_shows_a_wait_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, shown = shown_by(monkeypatch, terminal=True)
    progress.waiting("web1: waiting for SSH", 1.2, "the guest boots")
    progress.waiting("web1: waiting for SSH", 1.3, "the guest boots", "Starting network…\tsoon")
    progress.waiting("web1: waiting for SSH", 2.2, "the guest boots", "x" * 200)
    progress("warning: disk")
    progress.waiting("", 0)
    first, second, third, cleared = shown.getvalue().removeprefix("\r\x1b[K").split("\r\x1b[K")
    assert first == "web1: waiting for SSH (1 s): the guest boots"
    assert second == "web1: waiting for SSH (1 s): Starting network? soon"
    assert third == ("web1: waiting for SSH (2 s): " + "x" * 200)[:79]
    assert cleared == "warning: disk\n"


def test_a_terminal_of_unknown_size_shows_the_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, shown = shown_by(monkeypatch, terminal=True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr(os, "get_terminal_size", lambda _descriptor: os.terminal_size((0, 0)))
    progress.waiting("web1: waiting for SSH", 1, "the guest boots")
    assert shown.getvalue().endswith("the guest boots")


def test_without_a_terminal_a_wait_is_reported_every_10_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, shown = shown_by(monkeypatch, terminal=False)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for second in range(25):
        now[0] = 100.0 + second
        progress.waiting("web1: waiting", float(second), "it boots", f"line {second}")
    progress.waiting("web1: waiting", 25.0, "it has its address")
    progress.waiting("", 0)
    assert shown.getvalue() == (
        "web1: waiting: it boots (2 s)\nweb1: waiting: it boots (12 s)\nweb1: waiting: it boots (22 s)\n"
        "web1: waiting: it has its address (25 s)\n"
    )

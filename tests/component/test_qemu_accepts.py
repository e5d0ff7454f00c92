"""The options as QEMU itself takes them: over QMP, and as JSON on the command line."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qsysd.config import load
from qsysd.model.vm import VMSpec
from qsysd.paths import Scope
from qsysd.qemu import argv
from qsysd.qemu.machine_types import PROGRAM
from qsysd.qemu.monitor import Monitor
from qsysd.qemu.options import Option

CASES = sorted((Path(__file__).parents[1] / "golden/cases").glob("*.yaml"))
# On a machine with a conventional PCI bus, where devices can be added while it runs.
START = (PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-m", "64", "-accel", "tcg")


def spec_of(case: Path, scope: Scope) -> VMSpec:
    """Return the spec of a golden case, with the files of its disks below the scope's root."""
    spec = load.parse_vm(case.read_text(), case.name)
    directory = Path(scope.vm_dir(spec.name))
    directory.mkdir(parents=True)
    for option in argv.options(spec, scope):
        filename = option.values.get("filename") if isinstance(option, Option) else None
        if isinstance(filename, str) and filename.endswith(".qcow2"):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", filename, "1M"], check=True)
        elif isinstance(filename, str):
            Path(filename).write_bytes(bytes(1024**2))
    return spec


def without_taps(option: Option) -> Option:
    """Return the option, but a TAP's replaced by what needs neither root nor an interface."""
    if option.name != "-netdev":
        return option
    assert option.values["type"] == "tap"
    return replace(option, values={"type": "user", "id": option.values["id"]})


@pytest.fixture
def monitor(scope: Scope) -> Iterator[Monitor]:
    """Start a QEMU without a guest, and yield its monitor."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("qmp.sock")
    listener.listen()
    words = ["-machine", "pc", "-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"]
    process = subprocess.Popen([*START, *words, "-mon", "qmp,mode=control"], pass_fds=[listener.fileno()])
    listener.close()
    try:
        with Monitor("qmp.sock", timeout=60) as connected:
            yield connected
            connected.execute("quit")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_qemu_takes_each_option_while_it_runs(case: Path, scope: Scope, monitor: Monitor) -> None:
    sent = [
        option
        for option in argv.options(spec_of(case, scope), scope)
        if isinstance(option, Option) and option.command
    ]
    for option in sent:
        monitor.execute(option.command, without_taps(option).values)
    devices = {device["qdev_id"] for bus in monitor.execute("query-pci") for device in bus["devices"]}
    assert {option.values["id"] for option in sent if option.name == "-device"} <= devices
    nodes = {node["node-name"] for node in monitor.execute("query-named-block-nodes")}
    assert {option.values["node-name"] for option in sent if option.name == "-blockdev"} == nodes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_qemu_takes_each_option_as_json(case: Path, scope: Scope) -> None:
    words = []
    for option in argv.options(spec_of(case, scope), scope):
        if isinstance(option, Option) and option.command:
            words += [option.name, json.dumps(without_taps(option).values)]
    done = subprocess.run(
        [*START, "-machine", "q35", "-qmp", "stdio", *words],
        input='{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n',
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")

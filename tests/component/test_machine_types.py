"""Machine types are asked of QEMU once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from own_host import OwnHost
from stand_ins import StandIns

from qsysd.errors import HostError
from qsysd.qemu import machine_types


def test_machine_types_are_asked_of_qemu_once_and_again_when_it_changes(
    host: OwnHost, stand_ins: StandIns
) -> None:
    text = (
        "Supported machines are:\\nmicrovm  microvm (i386)\\nq35  PC (alias of pc-q35-{})\\npc-q35-{}  PC\\n"
    )
    stand_ins.add("qemu-system-x86_64", f"printf '{text.format(1, 1)}'")
    for _ in range(2):
        assert machine_types.pinned_machine(host.scope, "q35") == "pc-q35-1"
    assert machine_types.pinned_machine(host.scope, "microvm") == "microvm"
    assert machine_types.pinned_machine(host.scope, "pc-q35-1") == "pc-q35-1"
    assert len(stand_ins.calls("qemu-system-x86_64")) == 1
    stand_ins.add("qemu-system-x86_64", f"printf '{text.format(20, 20)}'")
    assert machine_types.pinned_machine(host.scope, "q35") == "pc-q35-20"
    with pytest.raises(HostError, match="no machine type 'q36'"):
        machine_types.pinned_machine(host.scope, "q36")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"identity": 1}', b"\xff\xfe", b"[" * 99999, None]
)
def test_machine_types_that_are_damaged_are_asked_for_again(host: OwnHost, content: bytes | None) -> None:
    path = Path(host.scope.runtime_dir, "machines.json")
    path.unlink()
    if content is None:
        (path / "in-the-way").mkdir(parents=True)
    else:
        path.write_bytes(content)
    assert machine_types.pinned_machine(host.scope, "q35").startswith("pc-q35-")
    assert json.loads(path.read_text(encoding="utf-8")) if content is not None else path.is_dir()

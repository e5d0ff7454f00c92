"""Files that a compromised QEMU leaves in its VM's directory."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from own_host import OwnHost, removed_by_delete

from qsysd.errors import QsysdError, StateError
from qsysd.host import base_images, console_log
from qsysd.images.formats import BrokenImageError, backing_chain, read_header
from qsysd.operations import create, delete, image, query
from qsysd.runtime import spawn


@pytest.fixture
def taken_over(host: OwnHost) -> Path:
    """Return the directory of a VM whose QEMU does what it wants."""
    create.create(host, "name: web1\nimage: tiny\ndisks: [{}]\n", "x", start=False)
    return Path(host.scope.vm_dir("web1"))


ODD_NAMES = (b"\x1b[2J", b"\xff\xfe", b"a\nb", b"\x9b1m", "\u202e".encode(), b"-rf", b" ", b"disk9.qcow2\n")


def test_odd_file_names_are_shown_and_deleted(host: OwnHost, taken_over: Path) -> None:
    for name in ODD_NAMES:
        with open(os.path.join(os.fsencode(taken_over), name), "wb"):
            pass
    for line in removed_by_delete(host, "web1"):
        assert line.isprintable()
        line.encode()
    assert json.dumps(asdict(query.status(host, ["web1"])[0])).count("qcow2") == 1
    delete.delete(host, ["web1"])
    assert not taken_over.exists()


def test_only_what_is_in_the_directory_is_deleted(host: OwnHost, taken_over: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").touch()
    (taken_over / "link").symlink_to(victim)
    (taken_over / "deep").mkdir()
    (taken_over / "deep" / "up").symlink_to("../../..")
    (taken_over / "hard").hardlink_to(victim / "kept")
    os.mkfifo(taken_over / "fifo")
    delete.delete(host, ["web1"])
    assert os.listdir(victim) == ["kept"]
    assert os.path.exists(host.scope.image("tiny"))


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path.relative_to(Path.cwd())))


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _directory(path: Path) -> None:
    path.mkdir()


def _text(path: Path) -> None:
    path.write_bytes(b"root:x:0:0")


@pytest.mark.parametrize("plant", [_fifo, _socket, _directory, _text])
def test_a_disk_that_is_none_is_not_waited_for(
    host: OwnHost, taken_over: Path, plant: Callable[[Path], None]
) -> None:
    disk = Path(os.path.abspath(taken_over), "disk0.qcow2")
    disk.unlink()
    plant(disk)
    with pytest.raises(BrokenImageError):
        read_header(str(disk))
    # the image counts as used: the definition says so
    found = base_images.users(host, "tiny")
    assert found.vms == ["web1"] and "disk0.qcow2" in found.unknown["web1"]
    with pytest.raises(StateError, match="image tiny is in use by VM web1"):
        image.remove(host, ["tiny"])
    assert image.info(host, "tiny")[1] == found
    query.status(host, ["web1"])


def test_a_chain_that_leads_elsewhere_is_not_followed_into_pipes_and_devices(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    overlay = tmp_path / "overlay.qcow2"
    spawn.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", str(fifo), str(overlay), "1M"]
    )
    assert backing_chain(str(overlay)) == [str(fifo)]


@pytest.mark.parametrize("plant", [_fifo, _socket, _loop, _directory])
def test_a_console_log_that_is_none_is_not_waited_for(
    host: OwnHost, taken_over: Path, plant: Callable[[Path], None]
) -> None:
    plant(Path(os.path.abspath(taken_over), "console.log"))
    with pytest.raises(QsysdError, match=r"console\.log"):
        console_log.console_tail(host, "web1", 10)


def test_the_end_of_a_console_log_is_shown_without_what_plays_with_a_terminal(
    host: OwnHost, taken_over: Path
) -> None:
    assert console_log.console_tail(host, "web1", 10) == []
    log = taken_over / "console.log"
    log.write_bytes(
        b"".join(b"line %d\r\n" % number for number in range(5000)) + b"\x1b[2Jlast\xff\x1b]0;x\x07 login: "
    )
    tail = console_log.console_tail(host, "web1", 3)
    assert tail == ["line 4998", "line 4999", "last\ufffd login: "]
    assert console_log.console_tail(host, "web1", 0) == []

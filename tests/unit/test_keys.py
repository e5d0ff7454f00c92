"""Public ssh keys: those of the person at the command, and of files that are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from samples import KEY, vm

from qsysd.config import dump, load, public_keys
from qsysd.errors import InvalidError
from qsysd.host import keys

RSA = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC7 me@work"
HARDWARE = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIA== key"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home directory of the person at the command."""
    for name in ("SUDO_UID", "PKEXEC_UID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_all_keys_of_a_file(tmp_path: Path) -> None:
    text = f"# mine\n\n{KEY}\n  {RSA}  \r\n{HARDWARE}"
    assert public_keys.read(write(tmp_path / "x.pub", text)) == [KEY, RSA, HARDWARE]


def test_a_key_without_a_comment(tmp_path: Path) -> None:
    assert public_keys.read(write(tmp_path / "x.pub", "ssh-rsa AAAA\n")) == ["ssh-rsa AAAA"]


def test_blanks_between_the_parts_become_one(tmp_path: Path) -> None:
    assert public_keys.read(write(tmp_path / "x.pub", "ssh-rsa\tAAAA   me  and me\n")) == [
        "ssh-rsa AAAA me  and me"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "hello\n", "ssh-rsa\n", "ssh-rsa not@base64\n",
        "untrusted comment: minisign public key\nRWQf6LRC\n",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n", b"\xff\xfe\x00",
        "ssh-rsa AAAA me\x1b[2J\n",
        'command="id" ssh-rsa AAAA\n', "ssh-rsa AAAA a\x07b\n",
    ],
)  # fmt: skip
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(InvalidError, match=r"x\.pub"):
        public_keys.read(write(tmp_path / "x.pub", text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InvalidError, match="is not a file of SSH public keys"):
            public_keys.read(str(path))


def test_whatever_is_read_can_stand_in_a_definition(tmp_path: Path) -> None:
    texts = ("a: b # c", "'", '"', "é", "\u2028", "\u0085x", "- x", "{}", "@x", "%", "x" * 500, "\ufeff")
    text = "\n".join(f"ssh-rsa AAAA {comment}" for comment in texts)
    found = public_keys.read(write(tmp_path / "x.pub", text))
    assert len(found) == len(texts)
    spec = vm(ssh_keys=tuple(found))
    assert load.parse_vm(dump.dump_vm(spec), "x") == spec


def test_the_callers_keys(home: Path) -> None:
    write(home / ".ssh/id_ed25519.pub", KEY)
    write(home / ".ssh/id_rsa.pub", f"{RSA}\n{KEY}\n")
    write(home / ".ssh/id_rsa", "private")
    assert keys.callers_keys() == [KEY, RSA]


def test_keys_of_other_programs_beside_them_are_passed_over(home: Path) -> None:
    write(home / ".ssh/minisign.pub", "untrusted comment: minisign\nRWQf6LRCGA9i\n")
    write(home / ".ssh/pgp.pub", b"\x99\x01\xff")
    (home / ".ssh/folder.pub").mkdir()
    (home / ".ssh/gone.pub").symlink_to("nowhere")
    write(home / ".ssh/id.pub", KEY)
    assert keys.callers_keys() == [KEY]


def test_a_fifo_and_an_endless_device_among_the_keys_do_not_hang(home: Path) -> None:
    os.mkfifo(home / ".ssh/fifo.pub")
    (home / ".ssh/zero.pub").symlink_to("/dev/zero")
    write(home / ".ssh/id.pub", KEY)
    assert keys.callers_keys() == [KEY]
    with pytest.raises(InvalidError, match="too long for a file of SSH public keys"):
        public_keys.read("/dev/zero")


def test_a_key_with_a_noncharacter_in_its_comment_is_no_key(tmp_path: Path) -> None:
    text = f"ssh-rsa AAAA a\ufffeb\n{KEY}\n"
    assert public_keys.read(write(tmp_path / "x.pub", text)) == [KEY]


def test_nobody_needs_keys(home: Path) -> None:
    assert keys.callers_keys() == []
    (home / ".ssh").rmdir()
    assert keys.callers_keys() == []


def test_the_person_behind_sudo_has_keys_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.setenv("SUDO_UID", str(os.getuid()))
    assert keys.callers_homes() == list(dict.fromkeys([str(home), pwd.getpwuid(os.getuid()).pw_dir]))


@pytest.mark.parametrize("uid", ["", "x", "-1", "4294967290"])
def test_nobody_is_behind_an_odd_uid(home: Path, monkeypatch: pytest.MonkeyPatch, uid: str) -> None:
    monkeypatch.setenv("SUDO_UID", uid)
    assert keys.callers_homes() == [str(home)]

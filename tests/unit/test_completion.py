"""What the shells offer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_host import OwnHost, Run

from qsysd.cli.main import command

pytest_plugins = ("cli_fixtures",)


def completions(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """Return what a shell would offer behind a line."""
    from click.shell_completion import ShellComplete

    *words, incomplete = line.split(" ")
    found = ShellComplete(command, {}, "qsysd", "_QSYSD_COMPLETE").get_completions(words[1:], incomplete)
    return [item.value for item in found]


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("qsysd sta", ["start", "status"]),
        ("qsysd start ", ["web1", "web2"]),
        ("qsysd start web1 ", ["web2"]),
        ("qsysd show w", ["web1", "web2"]),
        ("qsysd show x", []),
        ("qsysd image ", ["build", "import", "info", "list", "rm"]),
        ("qsysd l", ["list", "logs"]),
        ("qsysd image info ", ["tiny"]),
        ("qsysd create web3 --image ", ["debian", "tiny"]),
        ("qsysd create web3 --depends-on ", ["web1", "web2"]),
        ("qsysd create web3 --image d", ["debian"]),
        ("qsysd create web3 --network ", ["default", "lan", "none"]),
        ("qsysd create web3 --accel ", ["auto", "kvm", "tcg"]),
        ("qsysd image build ", ["debian"]),
        ("qsysd image build debian --suite ", ["bookworm", "trixie"]),
        ("qsysd logs web1 ", ["web2"]),
        ("qsysd help image i", ["import", "info"]),
        ("qsysd help sto", ["stop"]),
        ("qsysd completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_verbs_and_names_are_completed(
    monkeypatch: pytest.MonkeyPatch, host: OwnHost, line: str, offered: list[str]
) -> None:
    Path(host.scope.image("tiny")).touch()
    for network in ("default", "lan"):
        Path(host.scope.network_definition(network)).touch()
    assert sorted(completions(monkeypatch, line)) == sorted(offered)


def test_vm_names_are_completed_for_users_who_cannot_read_definitions(
    monkeypatch: pytest.MonkeyPatch, rendered: OwnHost
) -> None:
    """The definitions are root's: the names are those of units with qsysd's drop-in."""
    for name in ("web10", "deleted", "$(id)"):
        Path(rendered.scope.drop_in_dir(name)).mkdir()
    for name in ("web10", "$(id)"):
        Path(rendered.scope.drop_in(name)).touch()
    Path(rendered.scope.drop_in_dir("deleted"), "60-mine.conf").touch()
    listdir = os.listdir

    def refuse(path: str) -> list[str]:
        if path == rendered.scope.definitions_dir:
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr("os.listdir", refuse)
    assert completions(monkeypatch, "qsysd start ") == ["web1", "web2", "web10"]


def test_completion_without_permission_offers_nothing(monkeypatch: pytest.MonkeyPatch, host: OwnHost) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    assert completions(monkeypatch, "qsysd start ") == []


def test_files_with_other_names_are_not_completed(monkeypatch: pytest.MonkeyPatch, host: OwnHost) -> None:
    for name in (".#web1", "$(id)", "a b"):
        Path(host.scope.definitions_dir, f"{name}.yaml").touch()
    assert completions(monkeypatch, "qsysd start ") == ["web1", "web2"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(qsysd_command: Run, shell: str) -> None:
    result = qsysd_command("completion", shell)
    assert result.exit_code == 0
    assert "_QSYSD_COMPLETE=" in result.output

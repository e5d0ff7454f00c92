"""The helper of the units is installed, checked and replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_host import OwnHost

from qsysd.host import helper_install
from qsysd.operations import doctor, setup


def helpers(host: OwnHost) -> set[str]:
    return {name for name in os.listdir(host.scope.helper_dir) if name != "current"}


def current(host: OwnHost) -> str:
    return os.readlink(os.path.join(host.scope.helper_dir, "current"))


def upgrade(host: OwnHost, monkeypatch: pytest.MonkeyPatch, version: int) -> str:
    """Install the helper of another version."""
    monkeypatch.setattr(helper_install, "HELPER_MAIN", f"# version {version}\n{HELPER_MAIN}")
    return helper_install.install_helper(host)


HELPER_MAIN = helper_install.HELPER_MAIN


def run_helper(host: OwnHost, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the helper as a unit does."""
    command = helper_install.helper_command(host)
    return subprocess.run([*command, *arguments], check=False, capture_output=True, text=True, env={})


def test_the_helper_runs_without_the_package(host: OwnHost) -> None:
    done = run_helper(host, "stop", "web1")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_helper(host, "no-such-verb", "web1")
    assert (done.returncode, done.stderr) == (2, "the helper has no verb 'no-such-verb'\n")


@pytest.mark.parametrize(
    ("mark", "root", "runs"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_the_last_step_starts_python_only_for_something_to_do(
    host: OwnHost, mark: bool, root: bool, runs: bool
) -> None:
    os.makedirs(host.scope.roots_dir)
    if mark:
        Path(host.scope.shutdown_mark).touch()
    if root:
        os.mkdir(host.scope.root_dir("web1"))
    done = subprocess.run(
        ["/bin/sh", helper_install.after_stop(host), "web1"],
        check=False,
        capture_output=True,
        text=True,
        # a variable that the helper has a word about tells that it ran
        env={"QSYSD_NICS": "nonsense"},
    )
    assert ("QSYSD_NICS" in done.stderr, done.returncode) == ((True, 2) if runs else (False, 0))


def test_the_helper_is_compiled_and_open_to_the_vms_users(host: OwnHost) -> None:
    directory = Path(host.scope.helper_dir, current(host))
    assert len(list(directory.glob("qsysd/**/*.pyc"))) == len(helper_install.HELPER_MODULES)
    for path in [directory, *directory.rglob("*")]:
        assert path.stat().st_mode & 0o004, path


def test_an_upgrade_switches_at_one_blow_and_keeps_the_one_before(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = current(host)
    assert upgrade(host, monkeypatch, 2)
    second = current(host)
    assert helpers(host) == {first, second}
    # a stop that began before goes on with what it began with
    assert os.path.exists(os.path.join(host.scope.helper_dir, first, "qsysd/runtime/qmp.py"))
    assert upgrade(host, monkeypatch, 3)
    assert helpers(host) == {second, current(host)}
    assert not upgrade(host, monkeypatch, 3)
    assert run_helper(host, "stop", "web1").returncode == 0


def test_a_downgrade_uses_the_one_before_again(host: OwnHost, monkeypatch: pytest.MonkeyPatch) -> None:
    first = current(host)
    upgrade(host, monkeypatch, 2)
    monkeypatch.setattr(helper_install, "HELPER_MAIN", HELPER_MAIN)
    assert helper_install.install_helper(host)
    assert current(host) == first
    assert run_helper(host, "stop", "web1").returncode == 0


def test_current_leads_to_a_whole_helper_at_every_moment_of_an_upgrade(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    watched: dict[str, Callable[..., Any]] = {
        name: getattr(os, name) for name in ("rename", "unlink", "symlink", "makedirs")
    }

    def looked(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = watched[name](*arguments, **options)
            directory = os.path.join(host.scope.helper_dir, "current")
            seen.append(
                all(
                    os.path.exists(f"{directory}/qsysd/{module}.py")
                    for module in helper_install.HELPER_MODULES
                )
            )
            return result

        return call

    for name in watched:
        monkeypatch.setattr(os, name, looked(name))
    upgrade(host, monkeypatch, 2)
    assert len(seen) > 10
    assert all(seen)


@pytest.mark.parametrize("left", ["directory", "link", "dangling current", "no current"])
def test_what_a_killed_installation_left_is_not_in_the_way(
    host: OwnHost, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    link = Path(host.scope.helper_dir, "current")
    if left == "directory":
        upgrade(host, monkeypatch, 2)
        digest = current(host)
        monkeypatch.setattr(helper_install, "HELPER_MAIN", HELPER_MAIN)
        helper_install.install_helper(host)
        shutil.rmtree(os.path.join(host.scope.helper_dir, digest))
        os.makedirs(os.path.join(host.scope.helper_dir, f"{digest}.part", "qsysd"))
    elif left == "link":
        link.with_name("current.part").symlink_to("x")
    else:
        link.unlink()
        if left == "dangling current":
            link.symlink_to("gone")
    assert upgrade(host, monkeypatch, 2)
    assert run_helper(host, "stop", "web1").returncode == 0
    assert not [name for name in helpers(host) if name.endswith(".part")]


def helper_file(host: OwnHost, name: str) -> Path:
    """Return a file of the helper that is installed."""
    return Path(host.scope.helper_dir, "current", name)


def compiled(host: OwnHost) -> Path:
    """Return a compiled file of the helper."""
    (path,) = helper_file(host, "qsysd/runtime/__pycache__").glob("taps.*.pyc")
    return path


def into_directory(path: Path) -> None:
    """Put a directory in a file's place."""
    path.unlink()
    (path / "inside").mkdir(parents=True)


def into_link(path: Path) -> None:
    """Put a link to the same contents in a file's place."""
    path.rename("elsewhere")
    path.symlink_to(os.path.abspath("elsewhere"))


INSTALLED: dict[str, Callable[[OwnHost], Path]] = {
    "module": lambda host: helper_file(host, "qsysd/runtime/helper.py"),
    "main program": lambda host: helper_file(host, "qsysd-helper"),
    "after-stop": lambda host: helper_file(host, "after-stop"),
    "digests": lambda host: helper_file(host, "compiled.sha256"),
    "compiled": compiled,
    "template": lambda host: Path(host.scope.unit_dir, "qemu-vm@.service"),
    "unit": lambda host: Path(host.scope.unit_dir, "qsysd-recover.service"),
}
HARMS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "missing": Path.unlink,
    "unreadable": lambda path: path.chmod(0o600),
    "writable by all": lambda path: path.chmod(0o666),
    "directory": lambda path: into_directory(path),
    "link": lambda path: into_link(path),
}


@pytest.mark.parametrize("what", INSTALLED)
@pytest.mark.parametrize("harm", HARMS)
def test_what_is_not_as_installed_is_named_by_doctor_and_installed_again_by_set_up(
    host: OwnHost, what: str, harm: str
) -> None:
    path = INSTALLED[what](host)
    HARMS[harm](path)
    found = helper_install.differences(host)
    if harm in ("cut off", "not UTF-8") and what == "digests":
        assert all("__pycache__" in name for name in found) and found
    else:
        assert str(path) in found
    messages = [each.message for each in doctor.examine(host) if each.remedy == "qsysd setup"]
    assert all(any(name in message for message in messages) for name in found)
    assert {step.action for step in setup.setup(host).steps} & {"installed_unit", "installed_helper"}
    assert helper_install.differences(host) == []
    assert run_helper(host, "stop", "web1").returncode == 0
    assert setup.setup(host).steps == []
    assert not Path("elsewhere").exists() or Path("elsewhere").read_bytes()


def test_a_directory_of_the_helper_that_others_can_write_is_installed_again(host: OwnHost) -> None:
    helper_file(host, "qsysd").chmod(0o777)
    assert helper_install.differences(host) == [str(helper_file(host, "qsysd"))]
    assert helper_install.install_helper(host)
    assert helper_install.differences(host) == []


def test_a_helper_that_is_damaged_again_is_installed_again(host: OwnHost) -> None:
    for _ in range(3):
        helper_file(host, "qsysd/runtime/helper.py").write_text("def broken(:", encoding="utf-8")
        in_use = current(host)
        assert helper_install.install_helper(host)
        # a stop that began before goes on with what it began with
        assert in_use in helpers(host) and len(helpers(host)) == 2
        assert run_helper(host, "stop", "web1").returncode == 0

"""The package: its contents; installing, upgrading and removing it does not affect VMs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from labtest import REPOSITORY, LabHost, find_package, tiny_options

from qsysd import __version__
from qsysd.images import build
from qsysd.runtime import spawn
from tests.integration.helpers import INSTALL, apt

if TYPE_CHECKING:
    from tests.integration.conftest import Lab, VMFactory

VM = "keep1"
UNIT = f"qemu-vm@{VM}"
CONSOLE = f"/var/lib/qsysd/vms/{VM}/console.log"
HELPER = "/var/lib/qsysd/helper/current"


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a command on the machine and return its output."""
    done = subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout


def next_version(folder: Path) -> Path:
    """Return a package of a later version, whose helper and templates differ from those of this one."""
    tree = folder / "tree"
    run("dpkg-deb", "--raw-extract", find_package(), tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("^Version: .*", "Version: 99", control.read_text(), flags=re.MULTILINE))
    installed = tree / "usr/lib/python3/dist-packages/qsysd"
    for source in (
        installed / "runtime/helper.py",
        *installed.glob("templates/qemu-vm@*"),
        installed / "templates/vm.conf.j2",
    ):
        source.write_text(f"{source.read_text()}\n# of the next version\n")
    package = folder / "qsysd_99_all.deb"
    run("dpkg-deb", "--root-owner-group", "--build", tree, package)
    return package


def run_vm(host: LabHost) -> str:
    """Create the VM, wait until its guest has booted, and return QEMU's process ID."""
    host.qsysd("create", VM, *tiny_options())
    wait_ready(host)
    return host.property(UNIT, "MainPID")


def wait_ready(host: LabHost) -> None:
    """Wait until the guest has booted and handles the power button."""
    host.wait_until(
        lambda: "TINY READY" in console_log(host), timeout=90, what=f"the guest of {VM} getting ready"
    )


def console_log(host: LabHost) -> str:
    """Return the console output of the guest since its start."""
    return host.sh(f"cat {CONSOLE} 2>/dev/null || true")


def stop_gracefully(host: LabHost) -> None:
    """Stop the VM by systemctl, and see that its guest has gone off by itself; its next log is a new one."""
    host.forget_journal()
    host.systemctl("stop", UNIT)
    assert "TINY POWEROFF" in console_log(host)
    assert host.properties(UNIT, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    journal = host.journal(f"--unit={UNIT}", f"--since=@{host.noted:.3f}")
    assert not re.search("SIGKILL|timed out|did not power off|Failed", journal), journal
    host.sh(f"rm {CONSOLE}")


def leftovers(host: LabHost) -> list[str]:
    """Return everything of qsysd on a host: files, links, units, interfaces, rules."""
    files = host.sh(
        "find / -xdev \\( -path /proc -o -path /root -o -path /var/lib/apt -o -path /var/cache \\) -prune"
        " -o \\( -name '*qsysd*' -o -name 'qemu-vm*' \\) -print; ls -d /run/qsysd 2>/dev/null || true"
    )
    units = host.systemctl("list-units", "--all", "--plain", "--no-legend", "qemu-vm@*", "qsysd*")
    links = host.sh("ip -oneline link | grep -E ' q[bv][-_]' || true")
    rules = host.sh("nft list tables | grep qsysd || true")
    return [line for text in (files, units, links, rules) for line in text.splitlines()]


@pytest.fixture(scope="module")
def shared_host(lab: Lab) -> LabHost:
    """Give the host for the tests of this file."""
    host = lab.host("package")
    host.down()
    host.up("bookworm")
    host.install_tiny_guest()
    return host


@pytest.fixture
def package_host(shared_host: LabHost) -> LabHost:
    """Give a host with the package and without VMs."""
    shared_host.install(find_package())
    if shared_host.exists(f"/etc/qsysd/vms/{VM}.yaml"):
        shared_host.qsysd("delete", "--yes", VM)
    shared_host.forget_journal()
    return shared_host


@pytest.fixture
def bare_host(package_host: LabHost) -> LabHost:
    """Give a host without the package, with the package file in /root."""
    apt(package_host, "apt-get", "purge", "-qq", "qsysd")
    return package_host


# its contents


def test_versions_agree() -> None:
    changelog = (REPOSITORY / "debian/changelog").read_text()
    assert changelog.startswith(f"qsysd ({__version__})")
    assert find_package().name == f"qsysd_{__version__}_all.deb"


def test_package_has_real_files() -> None:
    listing = run("dpkg-deb", "--contents", find_package()).splitlines()
    modes = {line.split()[5].removeprefix("./"): line[0] for line in listing}
    assert "l" not in modes.values()
    folder = "usr/lib/python3/dist-packages/qsysd"
    for source in (*REPOSITORY.glob("templates/*"), *REPOSITORY.glob("units/*")):
        assert modes[f"{folder}/{source.relative_to(REPOSITORY)}"] == "-"


def test_package_ships_manual_pages_documents_and_examples() -> None:
    listing = run("dpkg-deb", "--contents", find_package()).splitlines()
    files = {line.split()[5].removeprefix("./") for line in listing}
    expected = {"usr/share/doc/qsysd/README.md", "usr/share/doc/qsysd/changelog.gz"}
    expected |= {f"usr/share/doc/qsysd/docs/{path.name}" for path in REPOSITORY.glob("docs/*.md")}
    expected |= {f"usr/share/doc/qsysd/examples/{path.name}" for path in REPOSITORY.glob("examples/*")}
    expected |= {
        f"usr/share/man/man{path.suffix[1]}/{path.name}.gz" for path in REPOSITORY.glob("docs/*.[1-8]")
    }
    assert len(expected) > 10
    assert expected - files == set()


def test_package_names_what_it_needs() -> None:
    """The packages that hints of `qsysd` refer to are dependencies or recommendations."""
    fields = run("dpkg-deb", "--field", find_package(), "Depends", "Recommends")
    named = set(re.findall(r"[a-z0-9.+-]{3,}", fields))
    assert {*spawn.PACKAGES.values(), *build.TOOLS.values(), "grub-pc-bin"} <= named


def test_pip_install(tmp_path: Path) -> None:
    """In a copy, because pip builds in the source directory."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("qsysd", "templates", "units", "setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        origin = REPOSITORY / name
        if origin.is_dir():
            shutil.copytree(
                origin, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif origin.exists():
            shutil.copy(origin, source / name)
    venv = tmp_path / "venv"
    run("/usr/bin/python3", "-m", "venv", "--system-site-packages", venv)
    run(venv / "bin/pip", "install", "--quiet", "--no-deps", "--no-build-isolation", source)
    assert __version__ in run(venv / "bin/qsysd", "--version", cwd=tmp_path)
    (installed,) = venv.glob("lib/python3*/site-packages/qsysd")
    for folder in ("templates", "units"):
        assert {path.name for path in (installed / folder).iterdir()} == {
            path.name for path in (REPOSITORY / folder).iterdir()
        }


# installation


def test_install_without_systemd(bare_host: LabHost) -> None:
    """As in a chroot, or while an image of a host is built."""
    host, package = bare_host, find_package()
    script = f"mount -t tmpfs none /run/systemd && {' '.join(INSTALL)} /root/{package.name} 2>&1"
    said = host.run(["unshare", "--mount", "/bin/sh", "-ec", script], timeout=120).stdout
    assert "qsysd setup" in said
    assert host.sh("dpkg-query --show --showformat='${db:Status-Status}' qsysd") == "installed"
    host.qsysd("setup")
    run_vm(host)


def test_install_on_a_host_that_is_not_ready(bare_host: LabHost) -> None:
    host, package = bare_host, find_package()
    host.write("/etc/qsysd/networks/default.yaml", "no: [network\n")
    said = apt(host, *INSTALL, f"/root/{package.name}")
    assert "this host is not ready" in said
    assert "/etc/qsysd/networks/default.yaml" in said
    host.sh("rm /etc/qsysd/networks/default.yaml")
    host.qsysd("setup")
    assert "ready" in host.qsysd("setup").stdout


COMPLETE = {
    "bash": """
        source /usr/share/bash-completion/completions/qsysd
        COMP_WORDS=(qsysd TYPED) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _qsysd_completion qsysd
        echo "${COMPREPLY[@]}"
    """,
    "fish": "complete --do-complete 'qsysd TYPED'",
    # zsh completes in its line editor only, so this types into another zsh on a terminal.
    "zsh": """
        zmodload zsh/zpty
        zpty other zsh -f -i
        zpty -w other 'autoload -U compinit; compinit -D -u; bindkey ^D list-choices; PS1=REA""DY'
        zpty -r other said '*READY*'
        zpty -w -n other $'qsysd TYPED\\C-d'
        zpty -r other said '*WANTED*'
        print -r -- "$said"
    """,
}


def test_no_module_of_the_callers_is_loaded(host: LabHost) -> None:
    folder = "/tmp/modules"
    host.write(f"{folder}/click.py", "raise SystemExit('the caller's module was loaded')\n")
    host.write(f"{folder}/qsysd/__init__.py", "raise SystemExit('the caller's module was loaded')\n")
    done = host.run(["sh", "-c", f"cd {folder} && PYTHONPATH={folder} qsysd list"])
    assert "loaded" not in done.stdout + done.stderr
    host.run(["rm", "-r", folder])


@pytest.mark.parametrize("shell", COMPLETE)
def test_completion(host: LabHost, shell: str) -> None:
    """Completion of verbs and of VM names."""
    name = f"complete-{shell}"
    host.write(f"/etc/qsysd/vms/{name}.yaml", "")
    for words, wanted in (("st", "status"), ("stop comp", name)):
        script = COMPLETE[shell].replace("TYPED", words).replace("WANTED", wanted)
        assert wanted in host.run([shell, "-c", script], timeout=20).stdout
    host.sh(f"rm /etc/qsysd/vms/{name}.yaml")


def test_completion_for_users_of_sudo(host: LabHost, vm: VMFactory) -> None:
    """As a user who cannot read definitions, complete VM names and networks by sudo."""
    name = vm()
    host.qsysd("create", name, *tiny_options(), "--no-start")
    for words, wanted in (("stop complet", name), ("create x --network def", "default")):
        script = COMPLETE["bash"].replace("TYPED", words)
        done = host.run(["runuser", "-u", "nobody", "--", "bash", "-c", script], timeout=20)
        assert wanted in done.stdout, done.stderr
    assert host.run(["runuser", "-u", "nobody", "--", "qsysd", "list"], check=False).returncode == 1


# upgrade and removal with a running VM


def test_upgrade_leaves_a_running_vm(package_host: LabHost, tmp_path: Path) -> None:
    host = package_host
    pid = run_vm(host)
    helper = host.sh(f"readlink {HELPER}")
    package = next_version(tmp_path)
    host.put(package, f"/root/{package.name}")
    # as for a VM that was started before this timer existed
    host.systemctl("stop", "qsysd-taps.timer")

    apt(host, *INSTALL, f"/root/{package.name}")

    assert host.property("qsysd-taps.timer", "ActiveState") == "active"
    assert host.sh(f"readlink {HELPER}") != helper
    assert "of the next version" in host.read("/etc/systemd/system/qemu-vm@.service")
    assert host.property(UNIT, "MainPID") == pid
    stop_gracefully(host)
    host.qsysd("start", VM)
    wait_ready(host)
    # and a downgrade
    pid = host.property(UNIT, "MainPID")
    apt(host, *INSTALL, f"/root/{find_package().name}")
    assert host.sh(f"readlink {HELPER}") == helper
    assert host.property(UNIT, "MainPID") == pid
    stop_gracefully(host)


def test_removal_leaves_a_running_vm(package_host: LabHost) -> None:
    host = package_host
    pid = run_vm(host)

    said = apt(host, "apt-get", "remove", "-qq", "qsysd")

    assert VM in said
    assert "/etc/qsysd" in said
    assert "/var/lib/qsysd" in said
    assert host.sh("command -v qsysd || echo gone") == "gone"
    assert host.property(UNIT, "MainPID") == pid
    stop_gracefully(host)
    host.systemctl("start", UNIT)
    wait_ready(host)
    host.sh(f"rm {CONSOLE}")
    host.reboot()
    host.wait_property(UNIT, "ActiveState", "active")
    wait_ready(host)
    assert host.systemctl("list-units", "--failed", "--plain", "--no-legend") == ""

    # purge keeps what is in use, and the package uses it again
    said = apt(host, "apt-get", "purge", "-qq", "qsysd")
    assert VM in said
    pid = host.property(UNIT, "MainPID")
    apt(host, *INSTALL, f"/root/{find_package().name}")
    assert host.property(UNIT, "MainPID") == pid
    (row,) = host.qsysd_json("list")
    assert (row["name"], row["active"], row["guest"], row["pid"]) == (VM, "active", "running", int(pid))
    stop_gracefully(host)


def test_removal_without_vms_leaves_settings(package_host: LabHost) -> None:
    host = package_host

    said = apt(host, "apt-get", "remove", "-qq", "qsysd")

    assert "/var/lib/qsysd" in said
    left = leftovers(host)
    assert [path for path in left if not path.startswith(("/var/lib/dpkg/", "/etc/needrestart/"))] == [
        "/etc/qsysd",
        "/etc/qsysd/qsysd.yaml",
        "/var/lib/qsysd",
    ]
    subnet = host.read("/etc/qsysd/networks/default.yaml")
    said = apt(host, *INSTALL, f"/root/{find_package().name}")
    # followed only by triggers of other packages
    assert any("qsysd is ready: sudo qsysd create web1" in line for line in said.splitlines()[-3:])
    assert host.read("/etc/qsysd/networks/default.yaml") == subnet
    run_vm(host)


def test_purge_leaves_nothing(package_host: LabHost) -> None:
    host = package_host
    run_vm(host)
    host.qsysd("delete", "--yes", VM)

    apt(host, "apt-get", "purge", "-qq", "qsysd")

    assert leftovers(host) == []
    assert host.systemctl("is-system-running") == "running"


def test_purge_in_one_step_keeps_vms(package_host: LabHost) -> None:
    host = package_host
    pid = run_vm(host)
    apt(host, "apt-get", "purge", "-qq", "qsysd")
    assert host.property(UNIT, "MainPID") == pid
    assert host.exists(f"/etc/qsysd/vms/{VM}.yaml")
    stop_gracefully(host)

"""The lab: hosts boot, keep their files, can lose their power, and are removed completely."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import labroot
import pytest
import tiny_guest
from labhost import Host, cache_folder
from labnet import Network
from labproc import LabError, run
from labtest import REPOSITORY, LabHost, lab_folder, wait_until

LAB = str(Path(tiny_guest.__file__).with_name("lab"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the work directory of a separate lab, which shares only the cache with others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QSYSD_LAB_CACHE", str(cache_folder(lab_folder())))
        patch.setenv("QSYSD_LAB_DIR", str(tmp_path_factory.mktemp("lab")))
        yield Path(os.environ["QSYSD_LAB_DIR"])
        command("down", "--all")


@pytest.fixture
def one(folder: Path) -> LabHost:
    """Give the host `one`, up."""
    host = LabHost(folder, "one")
    host.up()
    return host


def command(
    *arguments: str, stdin: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command of the lab."""
    names = ("QSYSD_LAB_CACHE", "QSYSD_LAB_DIR")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    return run([LAB, *arguments], stdin=stdin, check=check, timeout=600, environment=environment)


def traces(folder: Path) -> dict[str, list[str]]:
    """Return everything on the machine that belongs to the lab in this directory."""
    network = Network(folder)
    links = json.loads(run(["ip", "-j", "link", "show"]).stdout)
    processes = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(folder) in text(path)]
    groups = [path for path in Path("/sys/fs/cgroup").glob("**/*") if path.name.startswith(network.owner)]
    tables = run(["nft", "list", "tables"]).stdout.splitlines()
    return {
        "interfaces": [link["ifname"] for link in links if link.get("ifalias", "").startswith(network.owner)],
        "mounts": [line for line in text(Path("/proc/self/mountinfo")).splitlines() if str(folder) in line],
        "processes": [text(path) for path in processes],
        "groups": [str(path) for path in groups],
        "tables": [line for line in tables if network.table in line],
        "hosts": [str(path) for path in folder.glob("hosts/*")],
    }


def text(path: Path) -> str:
    """Return the contents of a file, "" if it does not exist."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_up_again_changes_nothing(one: LabHost) -> None:
    before = one.boot_id()
    command("up", "one")
    assert one.boot_id() == before
    assert "up" in command("status", "one").stdout


def test_exec_passes_input_output_and_status(one: LabHost) -> None:
    done = command(
        "exec", "--host", "one", "--", "sh", "-c", "cat; echo bad >&2; exit 7", stdin="words", check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("words", "bad\n", 7)


def test_exec_has_a_clean_environment_and_the_groups_of_the_host(one: LabHost) -> None:
    assert one.sh("pwd; echo $HOME $LANG") == "/root\n/root C.UTF-8"
    assert one.sh("sed -n 's/^0:://p' /proc/self/cgroup") == "/init.scope"


def test_exec_ends_with_its_caller(one: LabHost) -> None:
    with pytest.raises(LabError, match="not finished after"):
        one.run(["sleep", "7777"], timeout=0.5)
    ended = "! ps -eo stat,args | grep '^[^Z].*[s]leep 7777'"
    wait_until(
        lambda: one.run(["sh", "-c", ended], check=False).returncode == 0, timeout=5, what="sleep's end"
    )


def test_put_and_get(one: LabHost, tmp_path: Path) -> None:
    source = tmp_path / "folder"
    source.mkdir()
    (source / "file").write_text("here")
    (source / "file").chmod(0o750)
    (source / "link").symlink_to("file")
    command("put", "--host", "one", str(source), "/root/other")
    assert one.sh("cd /root/other; stat -c %a file; readlink link; cat file") == "750\nfile\nhere"
    command("get", "--host", "one", "/root/other", str(tmp_path / "back"))
    assert (tmp_path / "back/link").read_text() == "here"


def test_it_is_a_complete_host(one: LabHost) -> None:
    assert one.systemctl("is-system-running") == "running"
    assert one.sh("stat -c %a /dev/net/tun") == "666"
    assert one.sh("hostname") == "one"
    one.sh("ip link add lab-b type bridge; ip tuntap add lab-t mode tap; ip link set lab-t master lab-b")
    one.sh("nft add table ip lab; nft delete table ip lab; ip link delete lab-t; ip link delete lab-b")
    one.sh(
        "truncate -s 20M /root/f; mkfs.ext4 -q /root/f; mount -o loop /root/f /mnt; umount /mnt; rm /root/f"
    )


def test_the_package_and_its_recommendations_install_without_a_network(one: LabHost) -> None:
    control = (REPOSITORY / "debian/control").read_text().partition("\nPackage:")[2]
    wanted = re.search(r"Depends:\n((?: .*\n)*)Recommends:\n((?: .*\n)*)", control)
    assert wanted is not None
    lists = ",".join(wanted.groups()).replace("\n", "")
    choices = [re.findall(r"(?:^|\|)\s*([a-z0-9.+-]+)", choice) for choice in lists.split(",")]
    there = set(one.sh("dpkg-query -W -f '${Package}\\n${Provides}\\n' | tr -d ' ' | tr , '\\n'").split())
    assert len([names for names in choices if names]) > 10
    assert not [names for names in choices if names and not there.intersection(names)]


def test_two_hosts_reach_each_other(one: LabHost, folder: Path) -> None:
    two = LabHost(folder, "two")
    two.up()
    one.sh(f"ping -c 1 -W 5 {two.address()}")
    two.sh(f"ping -c 1 -W 5 {one.address()}")
    assert one.address() != two.address()
    two.down()
    assert one.run(["ping", "-c", "1", "-W", "1", str(one.address())]).returncode == 0


@pytest.mark.parametrize("how", ["reboot", "crash"])
def test_files_survive_a_boot_and_processes_do_not(one: LabHost, how: str) -> None:
    before = one.boot_id()
    one.sh("echo kept >/root/kept; echo lost >/run/lost; ip link add lost type bridge")
    one.sh("systemd-run --quiet --unit=lost sleep 8888")
    command(how, "one")
    assert one.boot_id() != before
    assert one.read("/root/kept") == "kept\n"
    assert not one.exists("/run/lost")
    assert "lost" not in one.sh("ip -brief link")
    assert one.run(["pgrep", "-f", "[s]leep 8888"], check=False).returncode == 1
    assert one.systemctl("is-system-running") == "running"


def test_off_and_on_again(one: LabHost) -> None:
    command("poweroff", "one")
    assert command("status", "one", check=False).returncode == 3
    assert command("exec", "--host", "one", "true", check=False).returncode == 1
    command("up", "one")
    assert one.systemctl("is-system-running") == "running"


@pytest.mark.parametrize("whom", ["supervisor", "nspawn"])
def test_up_repairs_a_killed_host(one: LabHost, whom: str) -> None:
    supervisor = one.supervisor()
    assert supervisor is not None
    (supervisor if whom == "supervisor" else supervisor.children()[0]).signal(9)
    wait_until(lambda: not supervisor.alive(), timeout=20, what="the supervisor's end")
    command("up", "one")
    assert one.systemctl("is-system-running") == "running"
    assert len([line for line in traces(one.lab)["processes"] if "systemd-nspawn" in line]) == 1


def test_another_suite_is_refused(one: LabHost) -> None:
    done = command("up", "one", "--suite", "trixie", check=False)
    assert done.returncode == 1
    assert "bookworm host" in done.stderr


def test_bad_names_are_refused() -> None:
    for name in ("", "Host", "1host", "host_1", "a-name-too-long"):
        with pytest.raises(LabError, match="is not a valid host name"):
            Host(Path("/nowhere"), name)


def test_down_leaves_nothing(folder: Path) -> None:
    command("up", "one", "two")
    seen = traces(folder)
    assert all(seen.values()), seen
    command("down", "one")
    assert traces(folder)["interfaces"], "the network stays as long as a host needs it"
    command("down", "--all")
    wait_until(lambda: not any(traces(folder).values()), timeout=10, what=f"nothing of {traces(folder)}")


def test_down_finds_a_host_without_its_directory(folder: Path) -> None:
    command("up", "one")
    run(["rm", "-r", str(folder / "hosts")])
    command("down", "--all")
    wait_until(lambda: not any(traces(folder).values()), timeout=10, what=f"nothing of {traces(folder)}")


def test_the_key_of_a_root_depends_on_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = labroot.key("bookworm")
    assert before != labroot.key("trixie")
    monkeypatch.setattr(labroot, "PACKAGES", (*labroot.PACKAGES, "hello"))
    assert labroot.key("bookworm") != before


def test_a_broken_build_leaves_no_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(suite: str, target: Path, log: Path, lock: int) -> None:
        (target / "etc").mkdir(parents=True)
        raise LabError("no network")

    monkeypatch.setattr(labroot, "bootstrap", broken)
    with pytest.raises(LabError, match="no network"):
        labroot.ensure(tmp_path, "bookworm")
    assert not list(tmp_path.glob("root-*"))

    def whole(suite: str, target: Path, log: Path, lock: int) -> None:
        for path in ("etc/tmpfiles.d", "etc/dpkg/dpkg.cfg.d"):
            (target / path).mkdir(parents=True)

    monkeypatch.setattr(labroot, "bootstrap", whole)
    root = labroot.ensure(tmp_path, "bookworm")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [root]


# the tiny guest


class TinyGuest:
    """A tiny guest with a plain QEMU on a host, as a transient unit."""

    def __init__(self, host: LabHost, *words: str, disk: str = "") -> None:
        self.host = host
        self.log = "/run/tiny.log"
        qemu = [
            *(
                "qemu-system-x86_64",
                "-machine",
                "q35,accel=tcg",
                "-m",
                "160",
                "-nodefaults",
                "-display",
                "none",
            ),
            *("-kernel", "/var/lib/tiny/vmlinux", "-initrd", "/var/lib/tiny/initrd"),
            *("-append", " ".join(("console=ttyS0 quiet", *words))),
            *("-chardev", f"socket,id=serial,path=/run/tiny.serial,server=on,wait=off,logfile={self.log}"),
            *("-serial", "chardev:serial", "-monitor", "unix:/run/tiny.monitor,server=on,wait=off"),
            *(
                "-netdev",
                "user,id=net,hostfwd=tcp:127.0.0.1:2222-:22",
                "-device",
                "virtio-net-pci,netdev=net",
            ),
            *(("-drive", f"file={disk},format=raw,if=virtio,werror=enospc") if disk else ()),
        ]
        host.run(["rm", "-f", self.log])
        host.run(["systemd-run", "--quiet", "--collect", "--unit=tiny", *qemu])

    def saw(self, pattern: str, *, timeout: float = 90) -> re.Match[str]:
        """Wait until the output of the serial port matches a pattern."""
        return wait_until(
            lambda: re.search(pattern, self.host.sh(f"cat {self.log}", check=False)),
            timeout=timeout,
            what=f"{pattern} of the tiny guest",
        )

    def monitor(self, words: str) -> str:
        """Send a command to QEMU's monitor and return its answer."""
        return self.host.run(
            ["socat", "-t1", "-", "UNIX-CONNECT:/run/tiny.monitor"], stdin=f"{words}\n"
        ).stdout

    def running(self) -> bool:
        """Return whether QEMU runs."""
        return self.host.property("tiny.service", "ActiveState") == "active"

    def wait_off(self, *, timeout: float = 30) -> None:
        """Wait until QEMU has exited."""
        wait_until(lambda: not self.running(), timeout=timeout, what="the tiny guest going off")

    def kill(self) -> None:
        """Stop QEMU."""
        self.host.systemctl("kill", "--signal=KILL", "tiny.service", check=False)
        self.wait_off()


@pytest.fixture
def tiny_host(one: LabHost) -> Iterator[LabHost]:
    """Give the host `one` with the tiny guest, and stop the guest at the end."""
    one.install_tiny_guest()
    yield one
    one.systemctl("kill", "--signal=KILL", "tiny.service", check=False)


def test_tiny_guest_boots_answers_and_powers_off(tiny_host: LabHost) -> None:
    guest = TinyGuest(tiny_host)
    assert guest.saw(r"TINY READY (\S+)").group(1) == "10.0.2.15"
    banner = tiny_host.run(["nc", "-w", "2", "127.0.0.1", "2222"], stdin="", check=False).stdout
    assert banner.strip() == "SSH-2.0-tiny"
    tiny_host.run(["socat", "-t1", "-", "UNIX-CONNECT:/run/tiny.serial"], stdin="echo 6x7=$((6*7))\n")
    guest.saw("6x7=42")
    guest.monitor("system_powerdown")
    guest.saw("TINY BUTTON\\s+TINY POWEROFF")
    guest.wait_off()


def test_tiny_guest_can_ignore_the_button(tiny_host: LabHost) -> None:
    guest = TinyGuest(tiny_host, "tiny=ignore-button")
    guest.saw("TINY READY")
    guest.monitor("system_powerdown")
    guest.saw("TINY BUTTON")
    guest.monitor("system_powerdown")
    guest.saw("(?s)TINY BUTTON.*TINY BUTTON")
    assert guest.running()
    guest.kill()


def test_tiny_guest_reboots_by_itself_and_counts(tiny_host: LabHost) -> None:
    tiny_host.sh("rm -f /root/disk; truncate -s 16M /root/disk")
    guest = TinyGuest(tiny_host, "tiny=count-boots", "tiny=reboot-after=1", disk="/root/disk")
    guest.saw("TINY COUNT 1\\b")
    guest.saw("TINY COUNT 2\\b")
    guest.kill()


def test_tiny_guest_fills_the_disk_of_the_host(tiny_host: LabHost) -> None:
    tiny_host.sh(
        "mkdir -p /root/small; mount -t tmpfs -o size=20M small /root/small; truncate -s 64M /root/small/disk"
    )
    guest = TinyGuest(tiny_host, "tiny=write-disk", disk="/root/small/disk")
    guest.saw("TINY WROTE 16")
    wait_until(
        lambda: "io-error" in guest.monitor("info status"), timeout=60, what="the pause at a full disk"
    )
    guest.kill()
    tiny_host.sh("umount /root/small")

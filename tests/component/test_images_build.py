"""Building an image with everything real but the packages: a stand-in for mmdebstrap makes a tiny root.

The disk that comes out is booted, so that the boot loader and the partition table, which are written
by hand, are proven by a firmware and not by another reading of the specification.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from image_files import MIB, info, qemu_img
from stand_ins import StandIns

from qsysd.errors import ExistsError, HostError, InvalidError, QsysdError
from qsysd.images import build, sources
from qsysd.images.catalog import Images
from qsysd.paths import Scope
from qsysd.runtime import spawn

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(
        not os.path.exists(build.BOOT_SECTOR) or not shutil.which("mke2fs", path=spawn.SYSTEM_PATH),
        reason="apt install grub-common grub-pc-bin e2fsprogs",
    ),
]

GRUB_CFG = """\
insmod serial
insmod echo
insmod halt
serial --unit=0
terminal_output serial
echo "root is $root, hello"
halt
"""
# The last three arguments are suite, root and sources.
TINY_ROOT = """\
while [ $# -gt 3 ]; do shift; done
mkdir -p "$2/boot/grub/i386-pc" "$2/etc"
cp /usr/lib/grub/i386-pc/*.mod "$2/boot/grub/i386-pc"
cp "{config}" "$2/boot/grub/grub.cfg"
cp "$3" "$2/etc/sources"
ln "$2/etc/sources" "$2/etc/hard"
chown 1234:5678 "$2/etc/sources"
echo 'I: installing remaining packages inside the chroot...'
echo 'qsysd: packages 7'
"""


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    return Scope(str(tmp_path / "host"))


@pytest.fixture
def images(scope: Scope) -> Images:
    return Images(scope)


@pytest.fixture
def tiny(tmp_path: Path, stand_ins: StandIns) -> StandIns:
    """Return stand-ins with an mmdebstrap that makes a root in which GRUB says hello."""
    config = tmp_path / "grub.cfg"
    config.write_text(GRUB_CFG, encoding="utf-8")
    stand_ins.add("mmdebstrap", TINY_ROOT.format(config=config))
    return stand_ins


def left(scope: Scope) -> set[str]:
    return set(os.listdir(scope.images_dir)) if os.path.isdir(scope.images_dir) else set()


def boots(path: str, directory: Path) -> str:
    """Start a disk under SeaBIOS; return what it said on the serial port until it switched off."""
    serial = directory / "serial"
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]
    argv += ["-drive", f"file={path},if=virtio,snapshot=on", "-serial", f"file:{serial}"]
    subprocess.run(argv, timeout=120, check=True)
    return serial.read_text(errors="replace")


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_built_image_boots(
    images: Images,
    scope: Scope,
    tiny: StandIns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_memory: bool,
) -> None:
    monkeypatch.setattr(build, "_available_memory", lambda: 2**40 if in_memory else 0)
    told: list[str] = []
    image = images.build("debian", name="tiny", suite="trixie", progress=told.append)
    assert left(scope) == {"tiny.qcow2", "tiny.yaml"}
    assert image.source == "built: debian trixie"
    assert (image.default_user, image.cloud_init, image.virtual_size) == ("debian", True, 2048 * MIB)
    assert image.problem is None
    assert "root is hd0,gpt1, hello" in boots(image.path, tmp_path)
    note = yaml.safe_load(Path(scope.image_metadata("tiny")).read_text(encoding="utf-8"))
    assert (note["recipe"], note["suite"], note["packages"]) == ("debian", "trixie", 7)
    assert any(line.startswith("packing the image") for line in told)


def test_the_image_is_valid_and_contains_the_tree(images: Images, tiny: StandIns, tmp_path: Path) -> None:
    image = images.build("debian", size=1500 * MIB)
    assert info(image.path)["virtual-size"] == 1500 * MIB
    raw = tmp_path / "raw"
    qemu_img("convert", "-O", "raw", image.path, raw)
    partition = f"{raw}?offset={MIB}"
    subprocess.run(["e2fsck", "-fn", partition], check=True, capture_output=True)
    if shutil.which("sfdisk", path=spawn.SYSTEM_PATH):
        done = subprocess.run(["sfdisk", "--verify", str(raw)], capture_output=True, text=True, check=True)
        assert "No errors detected" in done.stdout
    show = subprocess.run(
        ["debugfs", "-R", "stat /etc/sources", partition], capture_output=True, text=True, check=True
    ).stdout
    assert "User:  1234   Group:  5678" in show
    assert "Links: 2" in show


def test_the_arguments_of_mmdebstrap(images: Images, tiny: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = [sources.Source("http://mirror.example/debian", "bookworm", ("main",))]
    monkeypatch.setattr(sources, "host_codename", lambda: "bookworm")
    monkeypatch.setattr(sources, "host_sources", lambda: mirror)
    images.build("debian", suite="trixie")
    (call,) = tiny.calls("mmdebstrap")
    assert call[-3] == "trixie"
    packages = (
        next(word for word in call if word.startswith("--include=")).removeprefix("--include=").split(",")
    )
    assert {"cloud-init", "openssh-server", "qemu-guest-agent", "systemd-repart"} <= set(packages)


def test_default_suite_is_the_hosts_own(monkeypatch: pytest.MonkeyPatch, tiny: StandIns) -> None:
    for codename, suite in (
        ("trixie", "trixie"),
        ("bookworm", "bookworm"),
        ("sid", "bookworm"),
        (None, "bookworm"),
    ):
        monkeypatch.setattr(sources, "host_codename", lambda codename=codename: codename)
        assert build.plan("debian", suite=None, size=None).suite == suite


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("ubuntu", {}, "recipe ubuntu does not exist"),
        ("debian", {"suite": "sarge"}, "no recipe for Debian sarge"),
        ("debian", {"size": 100 * MIB}, "100 MiB is too small"),
    ],
)
def test_a_recipe_or_size_that_is_not_valid_is_refused(
    images: Images, scope: Scope, tiny: StandIns, recipe: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidError, match=words):
        images.build(recipe, **options)  # type: ignore[arg-type]
    assert tiny.calls("mmdebstrap") == []
    assert left(scope) == set()


def test_an_image_that_exists_is_not_built_again(images: Images, tiny: StandIns, scope: Scope) -> None:
    os.makedirs(scope.images_dir)
    Path(scope.image("debian")).touch()
    with pytest.raises(ExistsError):
        images.build("debian")
    assert tiny.calls("mmdebstrap") == []


def test_all_missing_tools_are_named_at_once(
    images: Images, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "find", lambda program: None)
    monkeypatch.setattr(build, "BOOT_SECTOR", "/nonexistent")
    with pytest.raises(HostError) as error:
        images.build("debian")
    assert error.value.hint == "apt install e2fsprogs grub-common grub-pc-bin mmdebstrap qemu-utils"
    assert left(scope) == set()


def test_a_build_without_enough_space_is_refused(
    images: Images, scope: Scope, tiny: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SPACE_NEEDED", {True: 2**60, False: 2**60})
    with pytest.raises(QsysdError, match="MiB free"):
        images.build("debian")
    assert left(scope) == set()


@pytest.mark.parametrize(
    ("program", "body", "words"),
    [
        (
            "mmdebstrap",
            "echo 'E: Unable to locate package nope' >&2; exit 1",
            "Unable to locate package nope",
        ),
        ("mke2fs", "echo 'mke2fs: No space left on device' >&2; exit 1", "No space left on device"),
        ("mount", "echo 'mount: not permitted' >&2; exit 32", "mount: not permitted"),
        ("qemu-img", "echo 'qemu-img: No space left on device' >&2; exit 1", "No space left on device"),
        ("grub-mkimage", "echo 'grub-mkimage: error: no module' >&2; exit 1", "no module"),
    ],
)
def test_a_failing_step(
    images: Images,
    scope: Scope,
    tiny: StandIns,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    body: str,
    words: str,
) -> None:
    monkeypatch.setattr(build, "_available_memory", lambda: 2**40)
    tiny.add(program, body)
    with pytest.raises(QsysdError, match=words):
        images.build("debian")
    assert left(scope) == set()


def test_scripts_are_valid_shell() -> None:
    for script in ("image-debian-build.sh", "image-debian-customize.sh"):
        path = os.path.join(build.TEMPLATES, script)
        done = subprocess.run(["sh", "-n", path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


# a build that is ended in the middle

BUILD = """
import sys
from qsysd.images.catalog import Images
from qsysd.paths import Scope
Images(Scope(sys.argv[1])).build("debian")
"""
# It starts a child in a session of its own, as a package's script could.
SLOW = """\
while [ $# -gt 3 ]; do shift; done
setsid sh -c 'sleep 1000 # {mark}' &
cat /proc/mounts > "{mark}.mounts"
touch "{mark}"
sleep 1000
"""


@pytest.fixture
def building(scope: Scope, tmp_path: Path, stand_ins: StandIns) -> Iterator[subprocess.Popen[str]]:
    """Yield a command that is in the middle of a build."""
    mark = tmp_path / "at-work"
    stand_ins.add("mmdebstrap", SLOW.format(mark=mark))
    command = subprocess.Popen([sys.executable, "-c", BUILD, scope.root], stderr=subprocess.PIPE, text=True)
    until(lambda: mark.exists() and len(of_this_build(tmp_path)) >= 3)
    yield command
    command.kill()
    command.communicate()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def of_this_build(tmp_path: Path) -> list[str]:
    """Return the command lines of all processes that belong to the test's build."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                line = (
                    Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                environment = Path("/proc", entry, "environ").read_bytes().decode(errors="replace")
                if str(tmp_path) in line or f"WORK={tmp_path}" in environment:
                    found.append(line)
    return found


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def test_the_mounts_of_a_build_are_not_visible_on_the_host(
    building: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert "qsysd-image" in (tmp_path / "at-work.mounts").read_text() or build._available_memory() < 2**32
    assert str(tmp_path) not in mounts()


def test_a_killed_build(
    building: subprocess.Popen[str], images: Images, scope: Scope, tmp_path: Path
) -> None:
    assert images.remove_abandoned() == [], "it is still at work"
    building.kill()
    building.wait()
    until(lambda: of_this_build(tmp_path) == [])
    assert str(tmp_path) not in mounts()
    assert left(scope) == {".debian.part"}
    assert images.remove_abandoned() == ["debian"]
    assert left(scope) == set()


def test_an_interrupted_build(building: subprocess.Popen[str], scope: Scope, tmp_path: Path) -> None:
    building.send_signal(signal.SIGINT)
    building.wait(30)
    assert of_this_build(tmp_path) == []
    assert left(scope) == set()
    assert str(tmp_path) not in mounts()

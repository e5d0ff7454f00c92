"""Images and the real qemu-img, also with files of other users that refer to files of the host."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from image_files import BOOT_SIGNATURE, HOSTILE, MIB, backing_on, info, qemu_img
from stand_ins import StandIns

from qsysd.errors import ExistsError, InvalidError, NotFoundError, QsysdError, StateError, TimeoutExpired
from qsysd.images import convert, detect, formats, staging
from qsysd.images.catalog import Images
from qsysd.paths import Scope

SIZE = 8 * MIB


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    return Scope(str(tmp_path / "host"))


@pytest.fixture
def images(scope: Scope) -> Images:
    return Images(scope)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a raw disk with data at both ends and a hole between."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.write(os.urandom(MIB))
        file.seek(510)
        file.write(BOOT_SIGNATURE)
        file.seek(SIZE - MIB)
        file.write(os.urandom(MIB))
    return path


@pytest.fixture
def base(images: Images, disk: Path) -> str:
    """Return the path of an image `base`."""
    return images.import_file(str(disk), "base", default_user="debian").path


def left(scope: Scope) -> set[str]:
    """Return what is in the images' directory."""
    return set(os.listdir(scope.images_dir)) if os.path.isdir(scope.images_dir) else set()


# import


@pytest.mark.parametrize(
    "options",
    [
        ("raw",), ("qcow2",), ("qcow2", "-c"), ("qcow2", "-c", "-o", "compression_type=zstd"),
        ("qcow2", "-o", "compat=0.10"), ("qcow2", "-o", "cluster_size=512"),
        ("qcow2", "-o", "extended_l2=on"), ("qcow2", "-o", "preallocation=metadata"),
        ("vmdk",), ("vmdk", "-o", "subformat=streamOptimized"), ("vdi",), ("vhdx",),
    ],
    ids=lambda options: "-".join(options).replace("--", "-"),
)  # fmt: skip
def test_import_keeps_every_byte(
    images: Images, scope: Scope, disk: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    source = tmp_path / "source"
    qemu_img("convert", "-f", "raw", "-O", *options, disk, source)
    told: list[str] = []
    image = images.import_file(str(source), "base", default_user="me", progress=told.append)
    assert qemu_img("compare", disk, image.path).strip() == "Images are identical."
    assert info(image.path)["format"] == "qcow2"
    assert image.sha256 == hashlib.sha256(Path(image.path).read_bytes()).hexdigest()
    assert (image.virtual_size, image.default_user, image.cloud_init) == (SIZE, "me", True)
    assert image.file_size == os.stat(image.path).st_size
    assert image.source == f"imported: {source}"
    assert image.problem is None
    assert left(scope) == {"base.qcow2", "base.yaml"}
    assert told
    assert images.get("base") == image


def test_import_of_a_large_sparse_disk(images: Images, tmp_path: Path) -> None:
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.write(b"x")
        file.truncate(1024**4)
    image = images.import_file(str(source), "large", kind="raw")
    assert image.virtual_size == 1024**4
    assert image.file_size < MIB


@pytest.mark.parametrize(
    ("words", "make"), [(words, make) for words, all_ in HOSTILE.items() for make in all_]
)
def test_a_file_that_refers_to_others_is_refused_before_qemu_img_opens_it(
    images: Images,
    scope: Scope,
    tmp_path: Path,
    stand_ins: StandIns,
    words: str,
    make: Callable[[Path, str], None],
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"the host's secret".ljust(MIB))
    source = tmp_path / "source"
    make(source, str(secret))
    stand_ins.add("qemu-img")
    with pytest.raises(InvalidError, match=words):
        images.import_file(str(source), "base")
    assert stand_ins.calls("qemu-img") == []
    assert left(scope) == set()


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vdi"])
def test_a_file_that_is_replaced_after_the_check_is_not_read(
    images: Images, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    qemu_img("convert", "-O", kind, disk, good)
    backing_on(bad, "/etc/hostname")
    look = detect.detect

    def swapping(fd: int, path: str, declared: str | None = None) -> str:
        found = look(fd, path, declared)
        if bad.exists():
            os.replace(bad, good)
        return found

    monkeypatch.setattr(detect, "detect", swapping)
    image = images.import_file(str(good), "base")
    assert not bad.exists()
    assert qemu_img("compare", disk, image.path).strip() == "Images are identical."


def test_a_file_that_changes_while_it_is_copied_is_refused(
    images: Images, scope: Scope, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    qemu_img("convert", "-O", "qcow2", disk, good)
    backing_on(bad, "/etc/hostname")
    look = detect.detect

    def changing(fd: int, path: str, declared: str | None = None) -> str:
        found = look(fd, path, declared)
        good.write_bytes(bad.read_bytes())
        return found

    monkeypatch.setattr(detect, "detect", changing)
    with pytest.raises(InvalidError, match="backing file"):
        images.import_file(str(good), "base")
    assert left(scope) == set()


def test_a_link_in_place_of_the_file_is_never_followed(images: Images, scope: Scope, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"the host's secret".ljust(MIB))
    (tmp_path / "link").symlink_to(secret)
    for kind in (None, "raw"):
        with pytest.raises(InvalidError, match=f"link is a link to {secret}"):
            images.import_file(str(tmp_path / "link"), "base", kind=kind)
    assert left(scope) == set()


@pytest.mark.needs_root
def test_links_of_another_user_in_the_path_are_not_followed(
    images: Images, scope: Scope, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").symlink_to(disk.parent)
    path = f"{tmp_path}/theirs/{disk.name}"
    os.chown(tmp_path / "theirs", 12345, 12345, follow_symlinks=False)
    with pytest.raises(InvalidError, match="its component theirs is a link that belongs to another user"):
        images.import_file(path, "base")
    assert left(scope) == set()
    # but those of root, and of the user who called sudo
    monkeypatch.setenv("SUDO_UID", "12345")
    images.import_file(path, "theirs")
    (tmp_path / "ours").symlink_to("theirs")
    images.import_file(f"{tmp_path}/ours/{disk.name}", "ours")


def test_a_preallocated_qcow2_is_not_written_out(images: Images, tmp_path: Path) -> None:
    source = tmp_path / "source"
    qemu_img("create", "-f", "qcow2", "-o", "preallocation=metadata", source, "6G")
    assert source.stat().st_size > 6 * 1024**3
    image = images.import_file(str(source), "base")
    assert image.virtual_size == 6 * 1024**3
    assert image.file_size < 16 * MIB


def test_blocks_of_zeros_use_no_space(images: Images, tmp_path: Path) -> None:
    source = tmp_path / "source"
    qemu_img("create", "-f", "qcow2", "-o", "preallocation=full", source, "48M")
    image = images.import_file(str(source), "base")
    assert os.stat(image.path).st_blocks * 512 < 4 * MIB


def test_qemu_img_has_limits_of_time_and_memory(
    images: Images, scope: Scope, disk: Path, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "MINIMUM_TIME", 0.1)
    monkeypatch.setattr(convert, "BYTES_PER_SECOND", 10**12)
    source = disk.parent / "source.qcow2"
    for kind, words in (("raw", ""), ("qcow2", "source.qcow2")):
        qemu_img_of_the_host = stand_ins.directory / "qemu-img"
        qemu_img_of_the_host.unlink(missing_ok=True)
        qemu_img("convert", "-O", kind, disk, source)
        stand_ins.add("qemu-img", f"ulimit -d > {disk.parent}/limit; exec sleep 60")
        with pytest.raises(TimeoutExpired, match=f"{words}.*did not end within"):
            images.import_file(str(source), "base")
        assert (disk.parent / "limit").read_text() == f"{convert.MEMORY_MAX // 1024}\n"
        assert left(scope) == set()
    assert images.remove_abandoned() == []


@pytest.mark.parametrize("user", ["Bad User", "", "a:b", "-x", "root\n", "é"])
def test_a_user_name_that_is_not_valid_is_refused(
    images: Images, scope: Scope, disk: Path, user: str
) -> None:
    with pytest.raises(InvalidError, match="is not a valid user name"):
        images.import_file(str(disk), "base", default_user=user)
    assert left(scope) == set()


@pytest.mark.parametrize(
    ("offset", "magic"),
    [(510, BOOT_SIGNATURE), (512, b"EFI PART"), (4096, b"EFI PART"), (512, b"LABELONE"), (1080, b"\x53\xef"),
     (0, b"XFSB"), (65600, b"_BHRfS_M"), (0, b"hsqs")],
)  # fmt: skip
def test_a_raw_disk_is_detected_by_its_beginning(
    images: Images, tmp_path: Path, offset: int, magic: bytes
) -> None:
    source = tmp_path / "source"
    source.write_bytes((bytes(offset) + magic).ljust(MIB, b"\0"))
    assert images.import_file(str(source), "base").virtual_size == MIB


@pytest.mark.parametrize("make", [HOSTILE[words][0] for words in ("ISO 9660", "text file", "is not a disk")])
def test_any_file_is_imported_with_format_raw(
    images: Images, tmp_path: Path, make: Callable[[Path, str], None]
) -> None:
    source = tmp_path / "source"
    make(source, "")
    with pytest.raises(InvalidError) as caught:
        images.import_file(str(source), "base")
    assert "--format raw" in str(caught.value.hint)
    images.import_file(str(source), "base", kind="raw")


def test_a_format_other_than_that_of_the_file_is_refused(images: Images, scope: Scope, disk: Path) -> None:
    with pytest.raises(InvalidError, match="has format raw, not qcow2"):
        images.import_file(str(disk), "base", kind="qcow2")
    assert left(scope) == set()


def test_damaged_tables_are_found(images: Images, scope: Scope, disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    qemu_img("convert", "-O", "qcow2", disk, source)
    header = formats.read_header(str(source))
    with source.open("r+b") as file:
        file.seek(header.l1_offset)
        (first,) = struct.unpack(">Q", file.read(8))
        file.seek(header.l1_offset)
        file.write(struct.pack(">Q", first + 512))  # not on a cluster's border
    with pytest.raises(InvalidError, match="not a valid image"):
        images.import_file(str(source), "base")
    assert left(scope) == set()


def test_only_regular_files_are_imported(images: Images, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="does not exist"):
        images.import_file(str(tmp_path / "none"), "base")
    with pytest.raises(InvalidError, match="not a regular file"):
        images.import_file(str(tmp_path), "base")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidError, match="not a regular file"):
        images.import_file(str(tmp_path / "fifo"), "base")


@pytest.mark.parametrize("name", ["", "Base", "1base", "a/b", "../a", "a b", "a" * 64, "-a", ".a", "a\n"])
def test_names_that_are_not_valid_are_refused(images: Images, scope: Scope, disk: Path, name: str) -> None:
    with pytest.raises(InvalidError):
        images.import_file(str(disk), name)
    with pytest.raises(NotFoundError):
        images.get(name)
    assert left(scope) == set()


def test_an_image_that_exists_is_not_replaced(images: Images, base: str, disk: Path) -> None:
    before = Path(base).read_bytes(), images.get("base")
    with pytest.raises(ExistsError):
        images.import_file(str(disk), "base")
    assert (Path(base).read_bytes(), images.get("base")) == before


def test_two_commands_cannot_create_the_same_image_at_once(images: Images, scope: Scope, disk: Path) -> None:
    with staging.directory(scope.images_dir, "base"):
        with pytest.raises(StateError, match="another command"):
            images.import_file(str(disk), "base")
        assert images.remove_abandoned() == []
        images.import_file(str(disk), "other")
    images.import_file(str(disk), "base")
    assert images.names() == ["base", "other"]


def test_an_image_that_appears_during_an_import_is_not_overwritten(
    images: Images, scope: Scope, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = convert.digest

    def slow(path: str, progress: Callable[[str], None]) -> str:
        Path(scope.image("base")).write_bytes(b"another's")
        return digest(path, progress)

    monkeypatch.setattr(convert, "digest", slow)
    with pytest.raises(ExistsError):
        images.import_file(str(disk), "base")
    assert Path(scope.image("base")).read_bytes() == b"another's"


def test_a_full_disk_during_import(images: Images, scope: Scope, disk: Path, stand_ins: StandIns) -> None:
    words = "qemu-img: error while writing: No space"
    stand_ins.add(
        "qemu-img", f'for last in "$@"; do :; done; echo half > "$last"; echo "{words}" >&2; exit 1'
    )
    with pytest.raises(QsysdError, match="error while writing: No space"):
        images.import_file(str(disk), "base")
    assert left(scope) == set()


# killed commands

SLOW_QEMU_IMG = "echo $$ > {pid}; sleep 60"
IMPORT = """
import sys
from qsysd.images.catalog import Images
from qsysd.paths import Scope
Images(Scope(sys.argv[1])).import_file(sys.argv[2], "base")
"""


@pytest.fixture
def importing(
    scope: Scope, disk: Path, tmp_path: Path, stand_ins: StandIns
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a command that is in the middle of an import, and its qemu-img's number."""
    pid = tmp_path / "pid"
    stand_ins.add("qemu-img", SLOW_QEMU_IMG.format(pid=pid))
    argv = [sys.executable, "-c", IMPORT, scope.root, str(disk)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    until(lambda: pid.exists() and pid.read_text().strip())
    yield process, int(pid.read_text())
    process.kill()
    process.communicate()


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_import_leaves_only_a_staging_directory(
    images: Images, scope: Scope, importing: tuple[subprocess.Popen[str], int]
) -> None:
    process, child = importing
    assert images.remove_abandoned() == [], "it is still at work"
    process.kill()
    process.wait()
    until(lambda: not alive(child))
    assert left(scope) == {".base.part"}
    assert images.names() == []
    assert images.remove_abandoned() == ["base"]
    assert left(scope) == set()


def test_an_interrupted_import_leaves_nothing(
    images: Images, scope: Scope, importing: tuple[subprocess.Popen[str], int]
) -> None:
    process, child = importing
    process.send_signal(signal.SIGINT)
    process.wait(20)
    until(lambda: not alive(child))
    assert left(scope) == set()


def test_an_abandoned_staging_directory_does_not_prevent_the_next_import(
    images: Images, scope: Scope, disk: Path
) -> None:
    os.makedirs(os.path.join(scope.images_dir, ".base.part/work/root"))
    Path(scope.images_dir, ".base.part/image.qcow2").write_bytes(b"half")
    images.import_file(str(disk), "base")
    assert left(scope) == {"base.qcow2", "base.yaml"}


def test_removal_of_staging_directories_follows_no_link(images: Images, scope: Scope, tmp_path: Path) -> None:
    os.makedirs(scope.images_dir)
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").touch()
    os.symlink(keep, os.path.join(scope.images_dir, ".link.part"))
    os.mkdir(os.path.join(scope.images_dir, ".dead.part"))
    os.symlink(keep, os.path.join(scope.images_dir, ".dead.part/inside"))
    Path(scope.images_dir, ".file.part").touch()
    assert images.remove_abandoned() == ["dead"]
    assert left(scope) == {".link.part", ".file.part"}
    assert (keep / "file").exists()


# list, get, remove


def test_a_host_before_setup_has_no_images(images: Images) -> None:
    assert images.list() == []
    with pytest.raises(NotFoundError) as error:
        images.get("debian")
    assert error.value.hint == "qsysd image build debian"


def test_the_hint_for_an_unknown_image_has_the_names_of_images(images: Images, base: str) -> None:
    with pytest.raises(NotFoundError) as error:
        images.get("debian")
    assert "base" in (error.value.hint or "")


@pytest.mark.parametrize("note", [None, b"", b"[1, 2", b"- a\n", b"\xff\xfe", b"file_size: x\n"])
def test_invalid_metadata_does_not_prevent_the_list(
    images: Images, scope: Scope, disk: Path, base: str, note: bytes
) -> None:
    images.import_file(str(disk), "second")
    if note is None:
        os.unlink(scope.image_metadata("base"))
    else:
        Path(scope.image_metadata("base")).write_bytes(note)
    first, second = images.list()
    assert (first.name, first.source, first.sha256, first.virtual_size) == ("base", "unknown", "", SIZE)
    assert first.created.endswith("Z")
    assert second.source == f"imported: {disk}"
    images.check("base")


def test_an_image_is_readable_for_all_users_regardless_of_the_umask(
    images: Images, scope: Scope, disk: Path
) -> None:
    before = os.umask(0o077)
    try:
        images.import_file(str(disk), "base")
    finally:
        os.umask(before)
    for path in (scope.image("base"), scope.image_metadata("base")):
        assert os.stat(path).st_mode & 0o777 == 0o644


def test_the_metadata_is_yaml(images: Images, scope: Scope, base: str) -> None:
    note = yaml.safe_load(Path(scope.image_metadata("base")).read_text(encoding="utf-8"))
    assert list(note)[:2] == ["name", "source"]
    assert note["default_user"] == "debian"
    assert note["file_size"] == os.stat(base).st_size


def test_remove(images: Images, scope: Scope, base: str) -> None:
    with pytest.raises(StateError, match="web1, web2") as error:
        images.remove("base", ["web1", "web2"])
    assert error.value.hint == "delete them first: qsysd delete web1 web2"
    assert images.names() == ["base"]
    images.remove("base", [])
    assert left(scope) == set()
    with pytest.raises(NotFoundError):
        images.remove("base", [])

"""Install what VMs need without the package: the units, and a copy of the helper that they run.

The helper is copied to a directory named by its digest, and the symlink `current` points to it: an
upgrade replaces it in one step, and removing the package removes nothing that VMs need. Each file is
compared with what this version installs, compiled files with the digests from their compilation.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress

from qsysd import paths, render
from qsysd.errors import QsysdError
from qsysd.files import SyncedTogether, read_bytes, read_text, sync_directory, sync_file, write_atomic
from qsysd.host.context import Host
from qsysd.qemu.machine_types import PROGRAM
from qsysd.runtime import spawn, trees

PACKAGE = os.path.dirname(os.path.dirname(__file__))

# The modules of the helper: the package `runtime`, and those of the lower floors that it imports.
HELPER_MODULES = (
    *("__init__", "digests", "errors", "files", "paths"),
    *(
        f"runtime/{file.removesuffix('.py')}"
        for file in sorted(os.listdir(f"{PACKAGE}/runtime"))
        if file.endswith(".py")
    ),
)
HELPER_MAIN = """\
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from qsysd.runtime.helper import main

status = main(sys.argv[1:])
# Not sys.exit: interpreter teardown takes some milliseconds of each start and stop.
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""
# ExecStopPost runs after every end of a unit. Usually `stop` has cleaned up before it, and host shutdown
# needs no cleanup: Python is not started then.
AFTER_STOP = """\
[ -e {shutdown_mark} ] || [ ! -e {roots_dir}/"$1" ] || exec {helper} after-stop "$1"
"""

# The directories of those modules, below a helper's.
_MODULE_DIRS = tuple(sorted({os.path.dirname(f"qsysd/{name}") for name in HELPER_MODULES}))

# In a helper's directory: the digests of the compiled files, as sha256sum writes them.
COMPILED = "compiled.sha256"


def python() -> str:
    """Return the interpreter for the helper: /usr/bin/python3, or this one if that does not exist."""
    system = "/usr/bin/python3"
    return system if os.path.exists(system) else os.path.realpath(sys.executable)


def helper_command(host: Host) -> list[str]:
    """Return the command that units call, without the verb."""
    return [python(), "-I", "-S", "-E", os.path.join(host.scope.helper_dir, "current", "qsysd-helper")]


def after_stop(host: Host) -> str:
    """Return the path of the shell script that the unit runs as its last step."""
    return os.path.join(host.scope.helper_dir, "current", "after-stop")


def differences(host: Host) -> list[str]:
    """Return the paths of units and of the helper's files that differ from what this version installs."""
    texts = _helper_texts(host)
    current = os.path.join(host.scope.helper_dir, "current")
    found = list(_damaged(current, texts))
    if not found and not _is_named(_current(host), _digest(texts)):
        found = [current]
    return found + _differing_units(host, unit_texts(host))


def _is_intact(path: str, content: bytes | None) -> bool:
    """Return whether a path is a regular file of root, readable by all, with this content."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    kind = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    return kind and status.st_mode & 0o666 == 0o644 and content is not None and read_bytes(path) == content


# the helper


def _helper_texts(host: Host) -> dict[str, str]:
    """Return the helper's files by their paths in its directory."""
    script = AFTER_STOP.format(
        shutdown_mark=host.scope.shutdown_mark,
        roots_dir=host.scope.roots_dir,
        helper=" ".join(helper_command(host)),
    )
    modules = {f"qsysd/{name}.py": f"{PACKAGE}/{name}.py" for name in HELPER_MODULES}
    texts = {name: read_text(path) or "" for name, path in modules.items()}
    return texts | {"qsysd-helper": HELPER_MAIN, "after-stop": script}


def _digest(texts: Mapping[str, str]) -> str:
    # Compiled files are for one version of Python.
    parts = [sys.implementation.cache_tag, *(f"{name}\0{text}" for name, text in sorted(texts.items()))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _current(host: Host) -> str:
    """Return the name of the directory that `current` points to, "" for none."""
    try:
        return os.readlink(os.path.join(host.scope.helper_dir, "current"))
    except OSError:
        return ""


def _is_named(directory: str, digest: str) -> bool:
    """Return whether a directory's name is the digest, or the digest with a number."""
    return directory.partition("-")[0] == digest


def _damaged(directory: str, texts: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths in a helper's directory that differ from what was installed."""
    for name, text in texts.items():
        if not _is_intact(f"{directory}/{name}", text.encode()):
            yield f"{directory}/{name}"
    for path in (f"{directory}/.", *(f"{directory}/{name}" for name in _MODULE_DIRS)):
        with suppress(OSError):  # reported by its files
            status = os.lstat(path)
            if status.st_uid != os.geteuid() or status.st_mode & 0o777 != 0o755:
                yield path.removesuffix("/.")
    digests = read_bytes(f"{directory}/{COMPILED}")
    lines = (digests or b"").decode("utf-8", "replace").splitlines()
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if len(recorded) != len(HELPER_MODULES) or not _is_intact(f"{directory}/{COMPILED}", digests):
        yield f"{directory}/{COMPILED}"
    for name, digest in recorded.items():
        content = read_bytes(f"{directory}/{name}")
        if not _is_intact(f"{directory}/{name}", content) or _sha256(content) != digest:
            yield f"{directory}/{name}"


def _sha256(content: bytes | None) -> str:
    return hashlib.sha256(content or b"").hexdigest()


def install_helper(host: Host) -> str:
    """Copy the helper to a directory outside the package, unless it is installed and intact.

    Return the new directory, "" if none was needed.
    """
    texts = _helper_texts(host)
    digest, current = _digest(texts), _current(host)
    helper_dir = host.scope.helper_dir
    if _is_named(current, digest) and not any(_damaged(f"{helper_dir}/{current}", texts)):
        return ""
    # A damaged helper is kept for units that use it now; the new one gets another name.
    name = digest if current != digest else f"{digest}-1"
    directory = f"{helper_dir}/{name}"
    if any(_damaged(directory, texts)):
        trees.remove(directory)
        _build_helper(directory, texts)
    link = f"{helper_dir}/current"
    trees.remove(f"{link}.part")
    os.symlink(name, f"{link}.part")
    if os.path.isdir(link) and not os.path.islink(link):
        trees.remove(link)
    os.rename(f"{link}.part", link)
    sync_directory(helper_dir)
    _remove_old_helpers(host, {name, current, "current"})
    return directory


def _build_helper(directory: str, texts: Mapping[str, str]) -> None:
    staging = f"{directory}.part"
    trees.remove(staging)
    with SyncedTogether():
        _fill_helper(staging, texts)
    os.rename(staging, directory)
    sync_directory(os.path.dirname(directory))


def _fill_helper(staging: str, texts: Mapping[str, str]) -> None:
    for path in (staging, *(f"{staging}/{name}" for name in _MODULE_DIRS)):
        os.makedirs(path)
        os.chmod(path, 0o755)  # regardless of the umask
    for name, text in texts.items():
        write_atomic(f"{staging}/{name}", text, 0o644)
    # Compiled by the interpreter that will run it, which may differ from this one. The sources are not read
    # again, so their time stamps do not matter.
    spawn.run([python(), "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", staging])
    lines = []
    for directory in (f"{name}/__pycache__" for name in _MODULE_DIRS):
        for entry in sorted(os.listdir(f"{staging}/{directory}")):
            path = f"{staging}/{directory}/{entry}"
            os.chmod(path, 0o644)
            sync_file(path)
            lines.append(f"{_sha256(read_bytes(path))}  {directory}/{entry}\n")
        sync_directory(f"{staging}/{directory}")
    write_atomic(f"{staging}/{COMPILED}", "".join(lines), 0o644)


def _remove_old_helpers(host: Host, keep: set[str | None]) -> None:
    """Remove helpers older than the previous one, which a running stop may still need."""
    for name in os.listdir(host.scope.helper_dir):
        if name not in keep:
            with suppress(QsysdError):  # the next set-up removes it
                trees.remove(os.path.join(host.scope.helper_dir, name))


# the units


def unit_texts(host: Host) -> dict[str, str]:
    """Return the units by their names. Raise HostError without QEMU or systemd."""
    texts = {
        paths.UNIT_TEMPLATE: render.unit(
            host.scope,
            systemd_version=host.systemd.version(),
            helper=helper_command(host),
            after_stop=after_stop(host),
            qemu=spawn.require(PROGRAM),
        )
    }
    for name in sorted(os.listdir(f"{PACKAGE}/units")):
        texts[name] = read_text(f"{PACKAGE}/units/{name}") or ""
    return texts


def _differing_units(host: Host, texts: Mapping[str, str]) -> list[str]:
    unit_paths = {f"{host.scope.unit_dir}/{name}": text for name, text in texts.items()}
    return [path for path, text in unit_paths.items() if not _is_intact(path, text.encode())]


def install_units(host: Host) -> list[str]:
    """Install the units that differ; return their names. systemd reads them only if one has changed."""
    texts = unit_texts(host)
    changed = [os.path.basename(path) for path in _differing_units(host, texts)]
    for name in changed:
        path = f"{host.scope.unit_dir}/{name}"
        if os.path.isdir(path):
            trees.remove(path)
        write_atomic(path, texts[name], 0o644)
    if not changed:
        return []
    host.systemd.reload()
    host.systemd.enable([name for name in texts if "@" not in name and "[Install]" in texts[name]])
    if host.systemd.active_units(paths.UNIT_PATTERN):
        # A start of a VM starts the timers; a running VM may have been started before they existed.
        timers = [name for name in texts if name.endswith(".timer")]
        host.systemd.run_jobs("StartUnit", timers, timeout=20)
    return changed

"""Kill a command at each of its side effects in turn, and look at what the next command makes of it.

    killed.py ROOT VERB STRIDE      a line of JSON a kill: before what, and what was left after recovery

ROOT is a directory in which `qsysd setup` has run. An audit hook sees each side effect before it
happens: files opened for writing, made, renamed or removed, programs run, calls to systemd. This is a
program of its own because it forks, which a test runner with threads must not. STRIDE 1 kills before
every effect, 3 before every third.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from own_host import OwnHost

from qsysd.host import keys, recovery
from qsysd.host.context import Host
from qsysd.operations import create, delete, edit, image, power, query, setup
from qsysd.operations.list import list_vms
from qsysd.paths import Scope, dhcp_unit, unit

VM = "killed1"
DEFINITION = f"""\
name: {VM}
image: tiny
memory: 64M
disks: [{{size: 1M}}, {{size: 1M}}]
nics: [{{}}, {{}}]
"""
ANOTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJt5a8mM0T7k me@laptop"
EFFECTS = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.symlink", "os.link",
    "os.truncate", "shutil.rmtree", "os.posix_spawn", "subprocess.Popen", "test.systemd",
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# What is of no VM: it may be there or not.
SHARED = ("./run/qsysd/locks", "./run/qsysd/machines.json", "./systemd.json")


def make_host() -> OwnHost:
    """Return the host below the current directory."""
    return OwnHost(Scope(""))


def tree() -> dict[str, str]:
    """Return all paths below the current directory with what is in the files, those of no VM left out."""
    found = {}
    for directory, directories, files in os.walk("."):
        for name in [*directories, *files]:
            path = os.path.join(directory, name)
            if path.startswith(SHARED) or path == "./run/qsysd/seeds":
                continue
            content = ""
            if os.path.basename(path) == "seed.iso":
                content = seed_documents(path)
            elif os.path.isfile(path) and not path.endswith((".qcow2", ".iso", ".pyc")):
                with open(path, encoding="utf-8", errors="replace") as file:
                    content = file.read()
            found[path] = content
    return found


def seed_documents(path: str) -> str:
    """Return what is in the files of a seed."""
    with open(path, "rb") as file:
        return b"".join(re.findall(rb"(?:#cloud-config|instance-id:|version:)[^\0]*", file.read())).decode()


def run_create(host: Host) -> None:
    """Make the VM, start it and have it started at host boot."""
    create.create(host, DEFINITION, "x.yaml", ssh_keys=[keys.host_key(host.scope)])


def run_delete(host: Host) -> None:
    """Remove the VM, which runs."""
    delete.delete(host, [VM])


def run_edit(host: Host) -> None:
    """Change all that follows from a definition: its files, the seed, the host entries, a NIC."""
    before = host.store.require(VM)
    text = before.replace("memory: 64M", "memory: 96M")
    lines = text.splitlines()
    last = max(index for index, line in enumerate(lines) if line.startswith("- name: net"))
    text = "\n".join(lines[:last] + lines[last + 4 :]) + "\nstop_timeout: 7s\n"
    text = text.replace("stop_timeout: 90s\n", "").replace("ssh_keys:\n", f"ssh_keys:\n- {ANOTHER_KEY}\n")
    edit.edit(host, VM, text, before=before)


def run_setup(host: Host) -> None:
    """Prepare a host that an older version has prepared."""
    setup.setup(host)


RUN: dict[str, Callable[[Host], None]] = {
    "create": run_create,
    "delete": run_delete,
    "edit": run_edit,
    "setup": run_setup,
}


def prepare(verb: str) -> None:
    """Bring the current directory into the state in which the command begins."""
    host = make_host()
    if verb in ("delete", "edit"):
        run_create(host)
        host.fake.set(dhcp_unit("default"), "inactive", "dead")
        leases = host.scope.leases("default")
        os.makedirs(os.path.dirname(leases))
        nic = host.store.load(VM).nics[0]
        with open(leases, "w", encoding="utf-8") as file:
            file.write(f"4000000000 {nic.mac} {nic.address} {VM} *\n")
            file.write("4000000000 52:54:00:00:00:99 10.0.0.99 other *\n")
    if verb == "setup":
        # an older helper, and units that are no longer what this version renders
        os.rename(os.path.realpath("var/lib/qsysd/helper/current"), "var/lib/qsysd/helper/0123456789ab")
        os.unlink("var/lib/qsysd/helper/current")
        os.symlink("0123456789ab", "var/lib/qsysd/helper/current")
        for name in os.listdir("etc/systemd/system"):
            if name.endswith((".service", ".timer")):
                with open(f"etc/systemd/system/{name}", "a", encoding="utf-8") as file:
                    file.write("# older\n")
        os.unlink("etc/qsysd/networks/default.env")


def die_before(number: int, effects: int) -> None:
    """Have this process killed before its effect `number`, of which it writes the name to `effects`."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not writes and event not in EFFECTS:
            return
        if event == "open" and str(arguments[0]).startswith("/dev/"):
            return
        count += 1
        if count == number:
            os.write(effects, f"{event} {arguments[0]!s}"[:200].encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed_before(verb: str, number: int) -> str | None:
    """Run a command and kill it before its effect `number`; return that, or None when it came to its end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 3
        try:
            os.close(reading)
            die_before(number, writing)
            RUN[verb](make_host())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        effect = pipe.read().decode()
    if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
        return effect
    assert status == 0, f"{verb} fails"
    return None


def state() -> str:
    """Return what the next command finds: `pending` when something is left to recover."""
    host = make_host()
    listed = [vm.name for vm in list_vms(host)]
    for name in listed:
        query.status(host, [name])
    return ",".join(listed)


def is_scratch(path: str) -> bool:
    """Return whether a file was being written: the next edit overwrites it, a delete removes it."""
    return path.endswith(".part") or path.startswith("./run/qsysd/seeds/")


def outcome(verb: str, before: dict[str, str], after: dict[str, str]) -> str:
    """Return `before` or `after`, whichever the tree is like now, or what is wrong with it."""
    now = tree()
    if verb == "edit":
        now = {path: content for path, content in now.items() if not is_scratch(path)}
    for name, wanted in (("before", before), ("after", after)):
        # addresses, UUIDs and keys are made anew by each create
        same = now.keys() == wanted.keys() if verb == "create" else now == wanted
        if same:
            return name
    extra = sorted(now.keys() - before.keys() - after.keys())
    less = sorted((before.keys() & after.keys()) - now.keys())
    changed = sorted(path for path in now if now[path] not in (before.get(path), after.get(path)))
    half = sorted(now.keys() ^ after.keys())
    return f"neither: extra {extra}, missing {less}, changed {changed}, half {half}"


def finish(verb: str) -> None:
    """Do what the next command does: recovery, set-up again, and for edit the next start."""
    host = make_host()
    recovery.recover(host)
    if verb == "setup":
        setup.setup(host)
    if verb == "edit":
        (outcome,) = power.start(host, [VM])
        assert outcome.error is None, outcome
    image.list_images(host)


def left_after_delete() -> list[str]:
    """Delete the VM, if it is there, and return what is left of it."""
    host = make_host()
    if host.store.exists(VM):
        run_delete(host)
    return [path for path in tree() if VM in path]


def main(root: str, verb: str, stride: int) -> None:
    """Kill the command before each of its effects, or before some of them."""
    # A kill is no power cut: what was written is there. Without waiting for the disk this takes seconds.
    os.fsync = lambda fd: None
    base = tempfile.mkdtemp(dir=os.path.dirname(os.path.abspath(root)))
    start, end, try_out = (os.path.join(base, name) for name in ("start", "end", "try"))
    shutil.copytree(root, start, symlinks=True)
    os.chdir(start)
    # what a program leaves in /tmp would be left, too
    os.mkdir("tmp")
    tempfile.tempdir = "tmp"
    prepare(verb)
    before = tree()
    shutil.copytree(start, end, symlinks=True)
    os.chdir(end)
    assert killed_before(verb, 0) is None
    after = tree()
    number = 1 - stride
    effect: str | None = ""
    while effect is not None:
        number += stride
        os.chdir(base)
        shutil.rmtree(try_out, ignore_errors=True)
        shutil.copytree(start, try_out, symlinks=True)
        os.chdir(try_out)
        effect = killed_before(verb, number)
        found: dict[str, object] = {"number": number, "effect": effect, "listed": state()}
        finish(verb)
        found["outcome"] = outcome(verb, before, after)
        found["active"] = make_host().systemd.state(unit(VM)).active
        found["left"] = left_after_delete()
        print(json.dumps(found), flush=True)
    os.chdir("/")
    shutil.rmtree(base)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""The command as people run it, in a process of its own: what it loads, what it says, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_qsysd
import pytest
from own_host import OwnHost
from samples import KEY
from stand_ins import StandIns
from test_transaction import plant_strange

import qsysd
from qsysd.errors import InvalidError
from qsysd.host import helper_install, intents
from qsysd.operations import edit

ROOT = os.path.dirname(os.path.dirname(qsysd.__file__))
HERE = os.path.dirname(own_qsysd.__file__)

# Each costs 20 ms and more, or is a part that these commands do not need.
HEAVY = {
    "yaml",
    "jinja2",
    "pydbus",
    "gi",
    "subprocess",
    "hashlib",
    "ipaddress",
    "tempfile",
    "asyncio",
}
# The same for the helper, which each start and stop of a VM runs four times.
HEAVY_FOR_A_HELPER = HEAVY | {
    "typing",
    "dataclasses",
    "pathlib",
    "click",
    "shutil",
    "ast",
    "inspect",
    "logging",
    "enum",
    "json",
    "re",
    "socket",
}


def command_line(*words: str) -> list[str]:
    return [sys.executable, own_qsysd.__file__, *words]


def environment(**more: str) -> dict[str, str]:
    path = os.environ.get("PATH", "")
    return {"PYTHONPATH": f"{ROOT}:{HERE}", "PATH": path, "HOME": os.getcwd(), "LANG": "C.UTF-8", **more}


@pytest.fixture
def run(host: OwnHost) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command on the host below the current directory, without a terminal."""

    def call(*words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(*words),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=environment(**more),
        )

    return call


Run = Callable[..., subprocess.CompletedProcess[str]]
CREATE = ("create", "web1", "--image", "tiny", "--disk", "1M", "--memory", "64M")


def create(run: Run, *more: str) -> None:
    done = run(*CREATE, *more)
    assert done.returncode == 0, done.stderr


# what is loaded


def modules(run: Run, *words: str) -> set[str]:
    """Return what a command imports."""
    run(*words, SHOW_MODULES="modules")
    return set(Path("modules").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("words", ["--version", "--help", "zzz", "start --help"])
def test_help_and_version_import_no_heavy_library(run: Run, words: str) -> None:
    found = modules(run, *words.split())
    assert not found & HEAVY


@pytest.mark.parametrize("words", ["list", "list --json", "start web1", "stop web1", "kill web1"])
def test_frequent_verbs_import_no_heavy_library(run: Run, words: str) -> None:
    create(run)
    found = modules(run, *words.split())
    assert not found & HEAVY
    heavy_parts = {
        "config.load",
        "render",
        "images.catalog",
        "network",
        "runtime.taps",
        "seed",
        "process",
        "model.vm",
    }
    assert not found & {f"qsysd.{name}" for name in heavy_parts}


@pytest.mark.parametrize(
    ("verb", "more"),
    [
        (
            "stop",
            {
                *("shutdown", "cleanup", "roots", "trees", "vm_directory", "spawn"),
                *("taps", "ports", "antispoof", "iproute", "nftables", "sysfs"),
            },
        ),
        ("ready", {"readiness", "monitors", "privileges", "qmp"}),
        ("no-such-verb", set()),
    ],
)
def test_the_helper_loads_little(host: OwnHost, verb: str, more: set[str]) -> None:
    python, *options, path = helper_install.helper_command(host)
    done = subprocess.run(
        [python, *options, "-X", "importtime", path, verb, "web1"],
        capture_output=True,
        text=True,
        check=False,
        env={},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    found = {line.rsplit("|", 1)[1].strip() for line in lines}
    assert "qsysd.runtime.helper" in found
    assert found & HEAVY_FOR_A_HELPER == set()
    own = {name for name in found if name.startswith("qsysd.")}
    always = {"qsysd.runtime", "qsysd.runtime.helper", "qsysd.runtime.unit", "qsysd.errors", "qsysd.paths"}
    assert own <= always | {f"qsysd.runtime.{module}" for module in more}


# a whole life


def test_the_life_of_a_vm(run: Run, host: OwnHost) -> None:
    Path(".ssh").mkdir()
    Path(".ssh/id.pub").write_text(f"{KEY}\n", encoding="utf-8")
    create(run)
    (listed,) = json.loads(run("list", "--json").stdout)
    assert listed["name"] == "web1"
    assert (listed["unit"], listed["active"], listed["enabled"]) == ("qemu-vm@web1.service", "active", True)
    assert (listed["memory_mib"], listed["image"]) == (64, "tiny")
    # there is no QEMU behind it
    assert listed["guest"] == "unknown"
    assert listed["ip"] == run("ip", "web1").stdout.strip()
    assert KEY in run("show", "web1").stdout
    assert json.loads(run("show", "web1", "--json").stdout)["memory"] == "64M"
    (status,) = json.loads(run("status", "web1", "--json").stdout)
    assert status["pending"] == []
    assert run("render", "--check").returncode == 0
    text = run("show", "web1").stdout.replace("memory: 64M", "memory: 96M")
    done = run("edit", "web1", "--file", "-", stdin=text)
    assert done.stdout == "web1: changed; takes effect after: qsysd restart web1\n"
    assert json.loads(run("list", "--json").stdout)[0]["memory_mib"] == 96
    assert run("disable", "web1").stdout == "web1: disabled\n"
    assert run("stop", "web1").stdout == "web1: stopped\n"
    assert run("stop", "web1").stdout == "web1: already off\n"
    assert run("delete", "web1", "--yes").stdout == "web1: deleted\n"
    assert run("list").stdout == ""
    assert "no VMs; create one" in run("list").stderr


def test_warnings_are_printed_on_standard_error(run: Run) -> None:
    done = run(*CREATE, "--memory", "900T", "--no-start")
    assert done.stdout.startswith("web1: created at ")
    assert done.stderr.startswith("warning: with web1, the running and enabled VMs have 900")
    assert run("list", "--json").stderr == ""


@pytest.mark.parametrize(
    ("words", "status"),
    [("list", 0), ("show web2", 3), ("create web1 --image tiny", 4), ("create x --image tiny --cpus 0", 2),
     ("create x --image nope", 3), ("pause web1", 1), ("resume off", 5), ("console off", 5),
     ("delete web1", 2), ("zzz", 2),
     ("image rm tiny --yes", 5), ("image info nope", 3)],
)  # fmt: skip
def test_exit_statuses(run: Run, words: str, status: int) -> None:
    create(run)
    assert run("create", "off", "--image", "tiny", "--disk", "1M", "--no-start").returncode == 0
    done = run(*words.split())
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) is bool(status)


def test_delete_without_a_terminal_deletes_nothing(run: Run) -> None:
    create(run)
    done = run("delete", "web1", stdin="y\n")
    assert done.returncode == 2
    assert "error: nothing was done: the question needs a terminal" in done.stderr
    assert run("show", "web1").returncode == 0


# how it ends


def test_a_closed_pipe_ends_a_command_silently(run: Run) -> None:
    create(run)
    shell = f"{' '.join(command_line('list', '--json'))} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.splitlines()[0] == "["
    assert done.stderr == ""


@pytest.mark.parametrize(("redirection", "status"), [(">/dev/full", 1), (">&-", 0), ("2>&-", 0), ("<&-", 0)])
def test_full_and_closed_streams_end_with_an_exit_status(run: Run, redirection: str, status: int) -> None:
    create(run)
    shell = f"{' '.join(command_line('list'))} {redirection}"
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert ("No space left on device" in done.stderr) is (status == 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_undoes_an_incomplete_create(
    run: Run, host: OwnHost, stand_ins: StandIns, number: signal.Signals
) -> None:
    # in the middle of making the disk
    stand_ins.add("qemu-img", "exec sleep 1000")
    log = stand_ins.directory / "qemu-img.log"
    process = subprocess.Popen(
        command_line(*CREATE), stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    while not log.exists():
        assert process.poll() is None
    assert intents.pending(host.scope)
    process.send_signal(number)
    _, words = process.communicate(timeout=20)
    assert (process.returncode, words.strip()) == (130, "interrupted")
    assert intents.pending(host.scope) == []
    assert host.store.names() == []
    assert not os.path.exists(host.scope.vm_dir("web1"))


def test_a_missing_bus_is_an_error(run: Run, host: OwnHost) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qsysd", "list"],
        capture_output=True,
        text=True,
        check=False,
        env={**environment(), "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"},
    )
    assert done.returncode == 7
    assert done.stderr.startswith("error: the system bus cannot be reached")
    assert "hint: " in done.stderr


def test_bytes_that_are_not_utf8_are_refused_on_the_command_line(run: Run) -> None:
    for words in (
        [*CREATE, "--append", "\udcff"],
        ["show", "\udcff"],
        ["create", "\udcff", "--image", "tiny"],
    ):
        done = run(*words)
        assert done.returncode in (2, 3)
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "xx_XX"])
def test_output_does_not_depend_on_the_locale(run: Run, locale: str) -> None:
    create(run, "--ssh-key", str(write_key()))
    done = run("show", "web1", LANG=locale, LC_ALL=locale)
    assert done.returncode == 0
    assert "jürgen" in done.stdout


def write_key() -> Path:
    path = Path("x.pub")
    path.write_text("ssh-rsa AAAA jürgen\n", encoding="utf-8")
    return path


# several at once


def at_once(*lines: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
    """Run commands at the same time."""
    processes: list[subprocess.Popen[str]] = [
        subprocess.Popen(
            command_line(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        for words in lines
    ]
    done = []
    for process in processes:
        out, error = process.communicate(timeout=120)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, error))
    return done


def test_parallel_creates_of_one_name_create_one_vm(run: Run, host: OwnHost) -> None:
    done = at_once(CREATE, CREATE, CREATE)
    assert sorted(each.returncode for each in done) == [0, 4, 4]
    assert edit.render(host, ["web1"], check=True).differences == {"web1": []}


def test_parallel_deletes_of_one_vm_succeed_once(run: Run, host: OwnHost) -> None:
    create(run)
    done = at_once(("delete", "web1", "--yes"), ("delete", "web1", "--yes"))
    assert sorted(each.returncode for each in done) == [0, 3]
    assert host.store.names() == []
    assert intents.pending(host.scope) == []


def test_a_vm_is_deleted_while_others_work_on_it(run: Run, host: OwnHost) -> None:
    create(run)
    done = at_once(
        ("delete", "web1", "--yes"),
        ("stop", "web1"),
        ("restart", "web1"),
        ("enable", "web1"),
        ("render",),
        ("list",),
    )
    for each in done:
        assert each.returncode in (0, 3), each.stderr
        assert "Traceback" not in each.stderr
    assert host.store.names() == []
    assert not os.path.lexists(os.path.join(host.scope.wants_dir, "qemu-vm@web1.service"))
    assert not os.path.exists(host.scope.vm_dir("web1"))
    assert not os.path.exists(host.scope.environment("web1"))


def test_different_vms_are_created_and_deleted_in_parallel(run: Run, host: OwnHost) -> None:
    names = [f"web{number}" for number in range(1, 7)]
    done = at_once(*[("create", name, "--image", "tiny", "--disk", "1M") for name in names])
    assert [each.returncode for each in done] == [0] * 6, [each.stderr for each in done]
    assert len({host.store.summary(name).addresses for name in names}) == 6
    done = at_once(*[("delete", name, "--yes") for name in names])
    assert [each.returncode for each in done] == [0] * 6, [each.stderr for each in done]
    assert host.store.names() == []


# completion, in the shell itself


@pytest.mark.parametrize(
    ("words", "offered"), [("sta", {"start", "status"}), ("show we", {"web1"}), ("image in", {"info"})]
)
def test_bash_completes(run: Run, words: str, offered: set[str]) -> None:
    create(run)
    Path("qsysd").write_text(f'#!/bin/sh\nexec {" ".join(command_line())} "$@"\n', encoding="utf-8")
    Path("qsysd").chmod(0o755)
    script = f"""
        PATH=$PWD:$PATH
        source <(qsysd completion bash)
        COMP_WORDS=(qsysd {words}) COMP_CWORD={len(words.split())} COMP_LINE='qsysd {words}'
        _qsysd_completion qsysd
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env=environment()
    )
    assert set(done.stdout.split()) == offered, done.stderr


def test_create_prints_nothing_but_json(run: Run, host: OwnHost) -> None:
    outcome: Any = json.loads(run(*CREATE, "--json").stdout)
    assert outcome["name"] == "web1"
    assert outcome["ip"] == host.store.summary("web1").addresses[0]


@pytest.mark.parametrize("editor", ["'", '"', "vi '"])
def test_an_invalid_editor_is_an_error(run: Run, editor: str) -> None:
    create(run, "--no-start")
    done = run("edit", "web1", EDITOR=editor)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the editor {editor!r} is not a command: ")
    assert "a bug in qsysd" not in done.stderr


def test_a_missing_editor_is_not_taken_for_a_package(run: Run) -> None:
    create(run, "--no-start")
    done = run("edit", "web1", EDITOR="nosucheditor --wait")
    assert done.returncode == 7
    assert done.stderr == (
        "error: the editor 'nosucheditor' is not installed\n"
        "hint: apt install nano, or set EDITOR to an installed editor\n"
    )


def test_a_refused_definition_is_kept_in_a_file(run: Run, host: OwnHost) -> None:
    create(run, "--no-start")
    before = Path(host.scope.definition("web1")).read_text(encoding="utf-8")
    editor = Path("editor")
    editor.write_text("#!/bin/sh\necho 'cpus: many' >>$1\n", encoding="utf-8")
    editor.chmod(0o755)
    done = run("edit", "web1", EDITOR=str(editor.absolute()), TMPDIR=os.getcwd())
    assert done.returncode == 2
    hint = r"^hint: your text is in (\S+); fix it and run: qsysd edit web1 --file \1$"
    kept = re.search(hint, done.stderr, re.MULTILINE)
    assert kept, done.stderr
    assert Path(kept[1]).read_text(encoding="utf-8") == f"{before}cpus: many\n"
    assert Path(kept[1]).stat().st_mode & 0o077 == 0
    assert Path(host.scope.definition("web1")).read_text(encoding="utf-8") == before


def test_invalid_intents_block_no_command(run: Run, host: OwnHost) -> None:
    create(run)
    names = plant_strange(host.scope)
    for words in ("list", "status web1", "stop web1", "start web1", "setup", "recover", "render"):
        done = run(*words.split())
        assert done.returncode == 0, (words, done.stderr)
    said = run("doctor").stdout
    assert said.count("is not an intent") == len(names)
    assert "intents/\\udcff\\udcfe.json" in said
    assert run("delete", "--yes", "web1").returncode == 0


def test_render_shows_the_errors_of_all_definitions(run: Run, host: OwnHost) -> None:
    create(run)
    for name in ("bad1", "bad2"):
        Path(host.scope.definition(name)).write_text("name: [", encoding="utf-8")
    Path(host.scope.environment("web1")).unlink()
    done = run("render")
    assert done.returncode == InvalidError.code
    assert done.stdout == f"web1: {host.scope.environment('web1')} written\n"
    assert "bad1.yaml" in done.stderr and "bad2.yaml" in done.stderr

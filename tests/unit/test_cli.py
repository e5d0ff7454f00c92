"""The command line: words in, one operation called, words and an exit status out."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from samples import KEY, vm

import qsysd
from qsysd import paths, render
from qsysd.cli import create as create_verb
from qsysd.cli import foreign, main
from qsysd.cli.definition import take_document
from qsysd.cli.main import ALIASES, GROUPS, VERBS, command
from qsysd.cli.outcomes import STATE_TEXTS
from qsysd.cli.output import print_table
from qsysd.cli.usage import DESTRUCTIVE, similar
from qsysd.config import dump, load
from qsysd.errors import (
    KINDS,
    ExistsError,
    HostError,
    InvalidError,
    NotFoundError,
    QsysdError,
    TimeoutExpired,
)
from qsysd.host import checks, guest_ssh, listing, selection, unit_states
from qsysd.host.context import Host
from qsysd.host.outcomes import Outcome, State, failed
from qsysd.model.boot import Kernel
from qsysd.model.disk import Disk
from qsysd.model.nic import Nic
from qsysd.model.vm import Accel, VMSpec
from qsysd.operations import create, delete, doctor, edit, guest, image, power, query, setup
from qsysd.paths import Scope

DEFINITIONS = {name: dump.dump_vm(vm(name=name, seed=False)) for name in ("web1", "web2")}


class OwnHost(Host):
    """A host below a directory; whoever asks is root."""

    def require_root(self) -> None:
        """Be content with anybody."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnHost:
    """Let commands work on a host below a directory, with the VMs web1 and web2."""
    scope = Scope(str(tmp_path))
    monkeypatch.setattr("qsysd.requests.client.Host", partial(OwnHost, scope))
    monkeypatch.setattr("qsysd.paths.Scope", lambda: scope)
    made = OwnHost(scope)
    for path in (scope.definitions_dir, scope.networks_dir, scope.unit_dir, scope.images_dir, scope.vms_dir):
        Path(path).mkdir(parents=True)
    Path(scope.unit_dir, paths.UNIT_TEMPLATE).touch()
    for name in ("web1", "web2"):
        Path(scope.definition(name)).write_text(DEFINITIONS[name], encoding="utf-8")
    return made


@pytest.fixture
def rendered(host: OwnHost) -> OwnHost:
    """Write what follows from the definitions."""
    for name in host.store.names():
        host.store.write_rendered(name, render.vm(vm(name=name, seed=False), host.scope))
    return host


@pytest.fixture
def qsysd_command(host: OwnHost) -> Callable[..., Result]:
    """Run a command line without a terminal and return what it printed, and its status."""

    def run(*words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(command, words, input=stdin, prog_name="qsysd", standalone_mode=True)

    return run


Run = Callable[..., Result]


DONE = {
    "start": State.STARTED, "stop": State.STOPPED, "kill": State.KILLED, "restart": State.RESTARTED,
    "reset": State.RESET, "pause": State.PAUSED, "resume": State.RESUMED, "enable": State.ENABLED,
    "disable": State.DISABLED,
}  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """Return what the operations of `power` were called with; each succeeds for each VM."""
    made: list[tuple[str, Any]] = []

    def operation(name: str, state: State) -> Callable[[Host, Sequence[str]], list[Outcome]]:
        def call(host: Host, names: Sequence[str] | None) -> list[Outcome]:
            vms = selection.resolve(host, names)
            made.append((name, vms))
            return [Outcome(vm, state) for vm in vms]

        return call

    for name, state in DONE.items():
        monkeypatch.setattr(power, name, operation(name, state))
    yield made


def all_commands() -> list[tuple[str, click.Command]]:
    """Return every verb with its words, those in groups included."""
    found: list[tuple[str, click.Command]] = []
    assert isinstance(command, click.Group)
    context = click.Context(command)
    for verb in VERBS:
        each = command.get_command(context, verb)
        assert each
        if isinstance(each, click.Group):
            found += [(f"{verb} {name}", sub) for name, sub in each.commands.items()]
        found.append((verb, each))
    return found


COMMANDS = dict(all_commands())


# help


@pytest.mark.parametrize("words", ["", *COMMANDS])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(words: str, option: str) -> None:
    result = CliRunner().invoke(command, [*words.split(), option], prog_name="qsysd")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: qsysd {words}".rstrip())
    assert all(len(line) <= 100 for line in result.output.splitlines())


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != "image"])
def test_help_holds_an_example_that_is_right(words: str) -> None:
    text = CliRunner().invoke(command, [*words.split(), "--help"], prog_name="qsysd").output
    lines = text.splitlines()
    (begin,) = [index for index, line in enumerate(lines) if line.strip() in ("Example:", "Examples:")]
    examples = []
    for line in lines[begin + 1 :]:
        if not line.strip():
            break
        examples.append(line.strip())
    assert examples
    for example in examples:
        assert f"qsysd {words}" in example
    # the verb knows the options that its examples use
    known = {
        name for parameter in COMMANDS[words].params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    for example in examples:
        used = example.partition(f"qsysd {words}")[2].partition(" -- ")[0].partition(" | ")[0].split()
        assert {word for word in used if word.startswith("-")} <= known, example


def test_help_shows_each_verb_with_its_line() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    for verb, line in VERBS.items():
        assert re.search(f"^  {verb}(, [a-z]+)?  +{re.escape(line)}$", text, re.MULTILINE)
        assert line[0].isupper()
        assert line.endswith(".")


def test_help_loads_no_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    verbs = {f"qsysd.cli.{verb}" for verb in VERBS}
    for name in verbs & set(sys.modules):
        monkeypatch.delitem(sys.modules, name)
    CliRunner().invoke(command, ["--help"])
    assert not verbs & set(sys.modules)


def test_each_verb_is_named_as_it_is_called() -> None:
    for verb in VERBS:
        assert COMMANDS[verb].name == verb


def test_without_a_verb_there_is_help() -> None:
    assert "Usage: qsysd" in CliRunner().invoke(command, [], prog_name="qsysd").output


def test_the_version() -> None:
    result = CliRunner().invoke(command, ["--version"], prog_name="qsysd")
    assert result.output == f"qsysd, version {qsysd.__version__}\n"


# usage errors: 2, and nothing is done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("strat web1", "unknown verb 'strat'"),
        ("zzz", "unknown verb 'zzz'"),
        ("start --all web1", "names and --all exclude each other"),
        ("start", "missing VM"),
        ("delete", "missing VM"),
        ("create", "missing NAME"),
        ("create web3 --image tiny --wait --no-start", "--wait needs a VM that is started"),
        ("create web3 --image tiny --wait --network none", "--wait needs a VM with a network"),
        ("create web3 --memory 1", "memory: 1 is too little memory"),
        ("create Web3 --image tiny", "'Web3' is not a name"),
        ("create web3 --image tiny --disk x", "disks[0].size: 'x' is not a size"),
        ("create web3 --image tiny --accel fast", "'fast' is not one of auto, kvm, tcg"),
        ("create web3 --initrd /x --image tiny", "initrd: needs 'kernel' as well"),
        ("image build debian --size x", "--size: 'x' is not a size"),
        ("image zzz", "unknown verb 'zzz'"),
    ],
)
def test_usage_errors(qsysd_command: Run, calls: list[Any], words: str, message: str) -> None:
    result = qsysd_command(*words.split())
    shown = result.output + str(result.exception or "")
    assert message in shown
    status = (
        result.exception.code if isinstance(result.exception, QsysdError | SystemExit) else result.exit_code
    )
    assert status == 2
    assert calls == []


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("start --al", "unknown option --al", "did you mean --all? See qsysd start --help"),
        ("create --memroy 1G x", "unknown option --memroy", "did you mean --memory? See qsysd create --help"),
        ("start --zzz", "unknown option --zzz", "qsysd start --help"),
        ("show", "missing VM", "qsysd show --help"),
        ("image import x", "missing --name", "qsysd image import --help"),
        ("show web1 web2", "got unexpected extra argument (web2)", "qsysd show --help"),
        ("create x --memory", "--memory needs a value", "qsysd help VERB shows the options"),
        ("create x --wait-timeout 0", "--wait-timeout: 0.0 is not in the range x>=1", "qsysd create --help"),
        ("logs web1 --lines -1", "--lines: -1 is not in the range x>=0", "qsysd logs --help"),
        ("completion tcsh", "SHELL: 'tcsh' is not one of 'bash', 'zsh', 'fish'", "qsysd completion --help"),
        ("--zzz", "unknown option --zzz", "qsysd --help"),
        ("start", "missing VM", "qsysd start VM... or qsysd start --all; qsysd list shows the VMs"),
    ],
)
def test_usage_errors_have_the_form_of_all_errors(
    monkeypatch: pytest.MonkeyPatch, words: str, message: str, hint: str
) -> None:
    assert run_main(monkeypatch, *words.split()) == (2, f"error: {message}\nhint: {hint}\n")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("shutdown web1", "qsysd stop web1"),
        ("shutdown", "qsysd stop VM"),
        ("dominfo web1", "qsysd status web1"),
        ("exec web1 ls", "qsysd ssh web1 -- COMMAND"),
        ("launch", "qsysd create VM --image debian"),
        ("ps", "qsysd list"),
        ("is-active web1", "systemctl is-active qemu-vm@web1"),
        ("help shutdown", "qsysd stop VM"),
        ("image pull debian", "qsysd image build debian; qsysd image import FILE --name NAME"),
        ("strat web1", "did you mean: qsysd start"),
        ("image impotr x", "did you mean: qsysd image import"),
        ("zzz", "qsysd --help lists the verbs"),
        ("shutdown $(id)", "qsysd stop VM"),
    ],
)
def test_an_unknown_verb_names_what_to_type(monkeypatch: pytest.MonkeyPatch, words: str, hint: str) -> None:
    status, shown = run_main(monkeypatch, *words.split())
    assert status == 2
    assert shown.startswith("error: unknown verb ")
    assert shown.endswith(f"hint: {hint}\n")


@pytest.mark.parametrize("verb", DESTRUCTIVE)
def test_similar_spelling_never_leads_to_a_verb_that_destroys(verb: str) -> None:
    """Each word that is one letter away from such a verb."""
    near = {verb[:index] + verb[index + 1 :] for index in range(len(verb))}
    near |= {verb[:index] + letter + verb[index:] for index in range(len(verb) + 1) for letter in "aelst"}
    near |= {f"{verb}e", "resize", verb.upper()}
    assert {similar(word, [*VERBS, *ALIASES]) for word in near - {*VERBS}} & {*DESTRUCTIVE} == set()


def test_each_foreign_word_is_answered_with_verbs_that_exist() -> None:
    for word, text in {**foreign.WORDS, **foreign.IMAGE_WORDS}.items():
        for named in re.findall(r"qsysd ([a-z]+)(?: ([a-z]+))?", text):
            assert named[0] in VERBS, word
            assert named[0] != "image" or f"image {named[1]}" in COMMANDS, word
    assert not {*foreign.WORDS} & {*VERBS, *ALIASES}
    for known in ("destroy", "undefine", "domifaddr", "dumpxml", "suspend", "info", "shell", "run", "images"):
        assert known in foreign.WORDS


@pytest.mark.parametrize(("alias", "verb"), ALIASES.items())
def test_an_alias_is_the_verb_itself(qsysd_command: Run, alias: str, verb: str) -> None:
    shown = qsysd_command("--help").output
    assert f"  {verb}, {alias} " in shown
    assert shown.count(VERBS[verb]) == 1
    assert qsysd_command(alias, "--help").output == qsysd_command(verb, "--help").output.replace(
        f"qsysd {verb} [", f"qsysd {alias} [", 1
    )


@pytest.mark.parametrize("words", ["", "ssh", "image", "image build"])
def test_help_verb_shows_what_the_option_shows(qsysd_command: Run, words: str) -> None:
    assert qsysd_command("help", *words.split()).output == qsysd_command(*words.split(), "--help").output


def test_groups_hold_each_verb_once_and_the_readme_shows_them() -> None:
    assert sorted(verb for verbs in GROUPS.values() for verb in verbs) == sorted(VERBS)
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    shown = CliRunner().invoke(command, ["--help"]).output
    for title, verbs in GROUPS.items():
        line = re.search(f"^    {title} +(.*)$", readme, re.MULTILINE)
        assert line, title
        assert re.findall(r"(?:^|  )([a-z]+)", line[1]) == list(verbs)
        assert f"{title}:\n" in shown


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("name", "status", "error", "hint"),
    [
        (
            "debian:12",
            2,
            "image: 'debian:12' is not the name of an image: images have no tags",
            "did you mean 'debian'? A release: qsysd image build debian --suite SUITE --name NAME",
        ),
        (
            "Debian",
            2,
            "image: 'Debian' is not the name of an image; allowed is [a-z][a-z0-9.-]{0,62}",
            "did you mean 'debian'?",
        ),
        (
            "./My disk.qcow2",
            2,
            "image: './My disk.qcow2' is not the name of an image but a file",
            "qsysd image import './My disk.qcow2' --name my-disk; then --image my-disk",
        ),
        (
            "x.qcow2",
            3,
            "image x.qcow2 does not exist",
            "qsysd image import x.qcow2 --name x; then --image x",
        ),
        (
            "debian-12",
            3,
            "image debian-12 does not exist",
            "qsysd image build debian --suite bookworm --name debian-12",
        ),
        ("debain", 3, "image debain does not exist", "did you mean 'debian'?"),
        (
            "ubuntu",
            3,
            "image ubuntu does not exist",
            "qsysd image list shows the images; qsysd image import FILE --name NAME adds one",
        ),
    ],
)
def test_a_wrong_image_is_one_error_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, host: OwnHost, name: str, status: int, error: str, hint: str
) -> None:
    monkeypatch.setattr(create, "_check_free", lambda host, name: None)
    monkeypatch.setattr(checks, "check_references", lambda host, spec, others: None)
    assert run_main(monkeypatch, "create", "web3", "--image", name) == (
        status,
        f"error: {error}\nhint: {hint}\n",
    )


# one shape: verbs on VMs


@pytest.mark.parametrize("verb", DONE)
def test_a_verb_works_on_several_vms_each_once(qsysd_command: Run, calls: list[Any], verb: str) -> None:
    result = qsysd_command(verb, "web2", "web1", "web2")
    assert result.exit_code == 0
    assert calls == [(verb, ["web2", "web1"])]
    assert result.output == f"web2: {DONE[verb]}\nweb1: {DONE[verb]}\n"


def test_all_of_them(qsysd_command: Run, calls: list[Any], host: OwnHost) -> None:
    assert qsysd_command("stop", "--all").exit_code == 0
    assert calls == [("stop", ["web1", "web2"])]
    for name in host.store.names():
        os.unlink(host.scope.definition(name))
    assert qsysd_command("stop", "--all").exit_code == 0


def test_one_that_fails_does_not_hide_the_others(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    timeout = TimeoutExpired("web1: not started", hint="qsysd logs web1")
    last = HostError("web3: no bridge")
    results = [failed("web1", timeout), Outcome("web2", State.STARTED), failed("web3", last)]
    monkeypatch.setattr(power, "start", lambda host, names: results)
    result = qsysd_command("start", "web1", "web2", "web3")
    # that of the first error
    assert result.exit_code == TimeoutExpired.code
    assert "web2: started\n" in result.output
    assert "error: web1: not started\nhint: qsysd logs web1\n" in result.output
    assert "error: web3: no bridge\n" in result.output


def test_each_state_of_an_outcome_has_a_text() -> None:
    assert set(STATE_TEXTS) == set(State) - {State.FAILED}


# create


def definition(*words: str) -> VMSpec:
    """Return the spec that a command line of `create` amounts to."""
    context = COMMANDS["create"].make_context("create", list(words), resilient_parsing=False)
    text, source = create_verb.definition(
        context.params["name"], context.params["file"], take_document(context.params)
    )
    return load.parse_vm(text, source)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--memory 512M", "memory_mib", 512),
        ("--memory 512", "memory_mib", 512),
        ("--cpus 3", "cpus", 3),
        ("--vcpus 3", "cpus", 3),
        ("--cpu host,-vmx", "cpu", "host,-vmx"),
        ("--cpu 486", "cpu", "486"),
        ("--accel tcg", "accel", Accel.TCG),
        ("--machine pc-q35-7.2", "machine", "pc-q35-7.2"),
        ("--disk 20G", "disks", (Disk("disk0", 20 * 1024**3),)),
        ("--disk 20 --disk 5G", "disks", (Disk("disk0", 20 * 1024**3), Disk("disk1", 5 * 1024**3))),
        ("--network lan", "nics", (Nic("net0", "lan", ""),)),
        ("--network lan --network dmz", "nics", (Nic("net0", "lan", ""), Nic("net1", "dmz", ""))),
        ("--network none", "nics", ()),
        ("--user no", "user", "no"),
        ("--depends-on db1 --depends-on db2", "depends_on", ("db1", "db2")),
        ("--stop-timeout 5min", "stop_timeout", 300),
        ("--stop-timeout 90", "stop_timeout", 90),
        ("--qemu-arg -device --qemu-arg usb-ehci,id=u", "qemu_args", ("-device", "usb-ehci,id=u")),
        ("--qemu-arg=--0123", "qemu_args", ("--0123",)),
        ("--qemu-arg 0123", "qemu_args", ("0123",)),
        ("--kernel /boot/vmlinuz", "kernel", Kernel("/boot/vmlinuz")),
    ],
)
def test_options_of_create(words: str, field: str, value: object) -> None:
    spec = definition("web3", "--image", "tiny", *words.split())
    assert getattr(spec, field) == value
    assert (spec.name, spec.image) == ("web3", "tiny")


def test_a_kernels_command_line_is_taken_as_it_is() -> None:
    append = "console=ttyS0 init=\"/bin/sh -c 'x'\" a,b $HOME % #c: \\"
    spec = definition("web3", "--kernel", "/k", "--initrd", "/i", "--append", append)
    assert spec.kernel == Kernel("/k", "/i", append)
    # as typed it is a text, whatever YAML takes it for
    for odd in ("no", "0123", "12:30", "", "~", "{}", "- x"):
        assert definition("web3", "--kernel", "/k", "--append", odd).kernel == Kernel("/k", None, odd)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidError, match="not UTF-8"):
        definition("web3", "--kernel", "/k", "--append", "quiet \udcff")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what `create` was called with; it creates nothing."""
    found: list[dict[str, Any]] = []

    def call(host: Host, definition: str, source: str, **options: Any) -> create.Created:
        spec = load.parse_vm(definition, source)
        found.append({"spec": spec, "source": source, **options})
        if options["wait"] and options["wait_timeout"] < 10:
            raise TimeoutExpired(f"{spec.name} runs, but did not answer")
        return create.Created(listed(name=spec.name), "10.83.0.10", 4.2 if options["wait"] else None)

    monkeypatch.setattr(create, "create", call)
    return found


def test_create_says_what_it_made(qsysd_command: Run, made: list[dict[str, Any]]) -> None:
    result = qsysd_command("create", "web3", "--image", "tiny")
    assert (result.exit_code, result.output) == (0, "web3: running at 10.83.0.10\n")
    assert made[0]["start"] is made[0]["enable"] is True
    assert made[0]["ssh_keys"] == []
    result = qsysd_command("create", "web3", "--image", "tiny", "--no-start", "--no-enable")
    assert result.output == "web3: created at 10.83.0.10\n"
    assert made[1]["start"] is made[1]["enable"] is False


def test_create_takes_keys_from_files(qsysd_command: Run, made: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "x.pub").write_text(f"{KEY}\n", encoding="utf-8")
    qsysd_command("create", "web3", "--image", "tiny", "--ssh-key", str(tmp_path / "x.pub"))
    assert made[0]["ssh_keys"] == [KEY]
    (tmp_path / "x.pub").write_text("nothing", encoding="utf-8")
    assert isinstance(
        qsysd_command("create", "web3", "--image", "tiny", "--ssh-key", str(tmp_path / "x.pub")).exception,
        InvalidError,
    )
    assert len(made) == 1


def test_create_takes_a_definition_from_a_file_or_from_standard_input(
    qsysd_command: Run, made: list[dict[str, Any]], tmp_path: Path
) -> None:
    text = "name: web3\nimage: tiny\nmemory: 2G\n"
    (tmp_path / "web3.yaml").write_text(text, encoding="utf-8")
    qsysd_command("create", "--file", str(tmp_path / "web3.yaml"))
    qsysd_command("create", "-f", "-", stdin=text)
    assert [call["spec"].memory_mib for call in made] == [2048, 2048]
    assert [call["source"] for call in made] == [str(tmp_path / "web3.yaml"), "<stdin>"]


@pytest.mark.parametrize("words", ["web3", "--memory 1G", "--disk 1G", "--depends-on x", "--network none"])
def test_with_a_file_everything_stands_in_the_file(
    qsysd_command: Run, made: list[dict[str, Any]], words: str
) -> None:
    result = qsysd_command("create", "-f", "-", *words.split(), stdin="name: web3\nimage: tiny\n")
    assert isinstance(result.exception, InvalidError)
    assert made == []


def test_create_waits(qsysd_command: Run, made: list[dict[str, Any]]) -> None:
    result = qsysd_command("create", "web3", "--image", "tiny", "--wait")
    assert result.output == ("web3: running at 10.83.0.10\nweb3: answers on SSH after 4 s; qsysd ssh web3\n")
    result = qsysd_command("create", "web3", "--image", "tiny", "--wait", "--wait-timeout", "5")
    assert isinstance(result.exception, TimeoutExpired)
    assert [call["wait_timeout"] for call in made] == [300.0, 5.0]


# delete and image rm: named first, and asked


@pytest.fixture
def deleted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return what `delete` was called with; it deletes nothing."""
    found: list[list[str]] = []

    def contents(host: Host, name: str) -> delete.Contents:
        host.store.require(name)
        disk = delete.Item(f"/{name}/disk0.qcow2", delete.Kind.FILE, 1024**2)
        return delete.Contents(name, f"{name}.service", True, f"/{name}.yaml", True, "/d", [disk], 0, ["db"])

    def call(host: Host, names: Sequence[str] | None, *, dry_run: bool = False) -> delete.Deleted:
        vms = selection.resolve(host, names)
        if dry_run:
            return delete.Deleted(contents=[contents(host, name) for name in vms])
        found.append(vms)
        kept = ["/etc/systemd/system/qemu-vm@web1.service.d/60-mine.conf"]
        return delete.Deleted(deleted=vms, kept=kept)

    monkeypatch.setattr(delete, "delete", call)
    return found


def test_delete_names_what_goes_and_does_nothing_without_an_answer(
    qsysd_command: Run, deleted: list[list[str]]
) -> None:
    result = qsysd_command("delete", "web1", stdin="y\n")
    assert isinstance(result.exception, InvalidError)
    assert result.exception.hint == "--yes answers it without a terminal"
    assert result.output.startswith(
        "web1: this will be removed:\n"
        "  web1.service runs: it is switched off, without a shutdown of the guest\n"
        "  db depends on it, and will start without it\n"
        "  /web1.yaml and what was rendered from it\n"
        "  /web1/disk0.qcow2 (1.0 MiB)\n"
    )
    assert deleted == []


@pytest.mark.parametrize("answer", ["y", "n", "", "maybe"])
def test_delete_asks_a_person(
    qsysd_command: Run, deleted: list[list[str]], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("qsysd.cli.common.is_terminal", lambda: True)
    result = qsysd_command("delete", "web1", "web2", stdin=f"{answer}\n")
    assert "Remove them? [y/N]" in result.output
    assert deleted == ([["web1", "web2"]] if answer == "y" else [])
    if answer == "n":
        assert result.exit_code == 1
        assert result.output.endswith("nothing was done\n")
    assert (result.exit_code == 0) is (answer == "y")


def test_yes_is_an_answer(qsysd_command: Run, deleted: list[list[str]]) -> None:
    result = qsysd_command("delete", "web1", "-y")
    assert result.exit_code == 0
    assert deleted == [["web1"]]
    assert "web1: deleted\n" in result.output
    assert (
        "/etc/systemd/system/qemu-vm@web1.service.d/60-mine.conf is not qsysd's and was kept\n"
        in result.output
    )


def test_a_dry_run_only_shows(qsysd_command: Run, deleted: list[list[str]]) -> None:
    result = qsysd_command("delete", "--all", "--dry-run", "--yes")
    assert result.exit_code == 0
    assert "web2: this will be removed:" in result.output
    assert deleted == []


def test_one_unknown_name_and_none_is_deleted(qsysd_command: Run, deleted: list[list[str]]) -> None:
    result = qsysd_command("delete", "web1", "web3", "--yes")
    assert isinstance(result.exception, NotFoundError)
    assert deleted == []
    # nor is any removal announced
    assert result.output == ""


@pytest.mark.parametrize("name", ["../networks/default", "/etc", "web1/../web2", "web*", "", "."])
def test_no_path_can_be_deleted(
    qsysd_command: Run, deleted: list[list[str]], host: OwnHost, name: str
) -> None:
    Path(host.scope.network_definition("default")).touch()
    result = qsysd_command("delete", "--yes", "--", name)
    assert isinstance(result.exception, NotFoundError)
    assert deleted == []


def test_removing_an_image_asks_too(
    qsysd_command: Run, host: OwnHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Sequence[str]] = []
    monkeypatch.setattr(image, "remove", lambda host, names: removed.append(names))
    Path(host.scope.image("tiny")).touch()
    assert isinstance(qsysd_command("image", "rm", "tiny").exception, InvalidError)
    assert "would be removed" in qsysd_command("image", "rm", "tiny", "--dry-run").output
    assert removed == []
    assert qsysd_command("image", "rm", "tiny", "--yes").output.endswith("tiny: removed\n")
    assert removed == [("tiny",)]


# edit and render


def test_edit_takes_a_file_and_says_what_waits(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    edited: list[str] = []

    def call(host: Host, name: str, text: str, *, before: str) -> bool:
        edited.append(text)
        return "4" in text

    monkeypatch.setattr(edit, "edit", call)
    assert qsysd_command("edit", "web1", "-f", "-", stdin="cpus: 4").output == (
        "web1: changed; takes effect after: qsysd restart web1\n"
    )
    assert qsysd_command("edit", "web1", "-f", "-", stdin="cpus: 2").output == "web1: changed\n"
    assert edited == ["cpus: 4", "cpus: 2"]


def test_render_check_tells_what_differs_by_its_status(qsysd_command: Run, rendered: OwnHost) -> None:
    host = rendered
    assert qsysd_command("render", "--check").exit_code == 0
    Path(host.scope.environment("web2")).write_text("", encoding="utf-8")
    result = qsysd_command("render", "--check")
    assert result.exit_code == 1
    assert result.output == f"web2: {host.scope.environment('web2')} differs from its definition\n"
    result = qsysd_command("render", "--check", "--json")
    assert json.loads(result.output) == {"web1": [], "web2": [host.scope.environment("web2")]}
    assert qsysd_command("render", "--check", "web1").exit_code == 0
    # a check writes nothing
    assert Path(host.scope.environment("web2")).read_text(encoding="utf-8") == ""


# what shows something


def listed(**changes: Any) -> listing.ListedVM:
    values = {
        "name": "web1", "unit": "qemu-vm@web1.service", "active": "active", "sub": "running",
        "guest": "running",
        "enabled": True, "pid": 4711, "ip": "10.83.0.10", "image": "debian", "memory_mib": 512, "cpus": 2,
    }  # fmt: skip
    return listing.ListedVM(**{**values, **changes})


def test_a_list(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    off = listed(name="database-of-web1", active="activating", sub="auto-restart", guest=None, pid=None,
    ip=None, enabled=False,
                 image=None, memory_mib=None, cpus=None)  # fmt: skip
    monkeypatch.setattr(query, "list_vms", lambda host, names: [listed(), off])
    assert qsysd_command("list").output == (
        "NAME              STATE                      GUEST    BOOT      IP          IMAGE   MEMORY   CPUS\n"
        "web1              active                     running  enabled   10.83.0.10  debian  512 MiB  2\n"
        "database-of-web1  activating (auto-restart)  -        disabled  -           -       -        -\n"
    )
    keys = {"name", "unit", "active", "sub", "guest", "enabled", "pid", "ip", "image"}
    keys |= {"memory_mib", "cpus", "pending_memory_mib", "pending_cpus", "problem"}
    assert [set(each) for each in json.loads(qsysd_command("list", "--json").output)] == [keys, keys]


@pytest.mark.parametrize(
    ("variables", "terminal", "colour"),
    [
        ({}, True, True),
        ({"NO_COLOR": ""}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({}, False, False),
    ],
)
def test_states_are_coloured_and_counted_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, colour: bool
) -> None:
    failed = listed(name="web2", active="failed", sub="failed", guest=None, pid=None)
    monkeypatch.setattr(query, "list_vms", lambda host, names: [listed(), failed])
    pages = {"SC_PHYS_PAGES": 24 * 1024**3 // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **variables}.items():
        monkeypatch.setenv(name, value)
    output = io.StringIO()
    monkeypatch.setattr(output, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["qsysd", "list"])
    assert main.run() == 0
    shown = output.getvalue()
    assert ("\x1b[32mactive\x1b[0m  \x1b[32mrunning\x1b[0m" in shown) is colour
    assert ("\x1b[31mfailed\x1b[0m" in shown) is colour
    assert ("\x1b" in shown) is colour
    assert shown.endswith("\n2 VMs, 1 running, 512 MiB of 24 GiB memory\n") is terminal
    # the same width with colours and without
    assert [len(line) for line in click.unstyle(shown).splitlines()[:3]] == [65, 62, 62]


def test_an_empty_list(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "list_vms", lambda host, names: [])
    assert "no VMs; create one" in qsysd_command("list").output
    assert json.loads(qsysd_command("list", "--json").output) == []


def test_a_definition_is_shown_as_it_is(qsysd_command: Run, host: OwnHost) -> None:
    path = Path(host.scope.definition("web1"))
    path.write_text("# mine\nname: web1\nimage: debian\ncpus: 2", encoding="utf-8")
    assert qsysd_command("show", "web1").output == "# mine\nname: web1\nimage: debian\ncpus: 2"
    assert json.loads(qsysd_command("show", "web1", "--json").output) == {
        "name": "web1",
        "image": "debian",
        "cpus": 2,
    }


@pytest.mark.usefixtures("rendered")
def test_an_address(qsysd_command: Run) -> None:
    assert qsysd_command("ip", "web1").output == "10.83.0.10\n"
    assert json.loads(qsysd_command("ip", "web1", "--json").output) == {
        "name": "web1",
        "addresses": ["10.83.0.10"],
    }
    assert isinstance(qsysd_command("ip", "web3").exception, NotFoundError)


def test_findings(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [doctor.Finding("ok", "QEMU", "7.2"), doctor.Finding("warning", "KVM", "none", "switch it on")]
    monkeypatch.setattr(doctor, "examine", lambda host: findings)
    result = qsysd_command("doctor")
    assert result.exit_code == 0
    assert result.output == "     ok  QEMU: 7.2\nwarning  KVM: none\n         → switch it on\n"
    findings.append(doctor.Finding("missing", "nft", "is not installed", "apt install nftables"))
    result = qsysd_command("doctor", "--json")
    assert result.exit_code == 7
    assert json.loads(result.output)[2]["remedy"] == "apt install nftables"


def test_set_up_says_what_it_did(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "setup", lambda host: ["installed x"])
    assert qsysd_command("setup").output == "installed x\n"
    monkeypatch.setattr(setup, "setup", lambda host: [])
    assert qsysd_command("setup").output == "this host is ready\n"


def test_a_table_is_as_wide_as_it_must_be(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "LONG HEAD"), [("x", "y"), ("wide cell", "")])
    assert capsys.readouterr().out == "A          LONG HEAD\nx          y\nwide cell\n"


# ssh


@pytest.mark.usefixtures("rendered")
def test_ssh_hands_over_its_words(qsysd_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    waited: list[str] = []
    monkeypatch.setattr(unit_states, "require_running", lambda host, name: 4711)
    monkeypatch.setattr(guest_ssh, "wait_once", lambda host, name: waited.append(name))
    monkeypatch.setattr("qsysd.process.foreground", lambda argv: ran.append(list(argv)) or 42)  # type: ignore[func-returns-value]
    result = qsysd_command("ssh", "web1", "--", "ls", "-l", "--user", "x y")
    assert result.exit_code == 42
    assert ran[0][-5:] == ["--", "ls", "-l", "--user", "x y"]
    assert ran[0][-8:-5] == ["-l", "debian", "10.83.0.10"]
    qsysd_command("ssh", "web1", "-l", "root")
    assert ran[1][-3:] == ["-l", "root", "10.83.0.10"]
    assert waited == ["web1", "web1"]
    assert any(word.startswith("ConnectTimeout=") for word in ran[0])


def test_ssh_takes_the_guests_key_once_and_per_vm(rendered: OwnHost) -> None:
    command_line = guest._ssh_command(rendered, vm(), None, [])
    options = [word for word, before in zip(command_line[1:], command_line, strict=False) if before == "-o"]
    assert f"HostKeyAlias=qsysd-{vm().uuid}" in options
    assert "StrictHostKeyChecking=accept-new" in options


# exit statuses


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """Run a command line to its exit status, as main() does; return it with what went to standard error."""
    monkeypatch.setattr(sys, "argv", ["qsysd", *words])
    error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    return main.run(), error.getvalue()


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `setup` raise an error."""

    def fail(host: Host) -> list[str]:
        raise error

    monkeypatch.setattr(setup, "setup", fail)


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.usefixtures("host")
def test_each_kind_of_error_has_its_status(monkeypatch: pytest.MonkeyPatch, kind: type[QsysdError]) -> None:
    failing(monkeypatch, kind("it failed", hint="do this"))
    assert run_main(monkeypatch, "setup") == (kind.code, "error: it failed\nhint: do this\n")


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(28, "No space left on device", "/var/x"), 1, "No space left on device: '/var/x'"),
        (ValueError("odd"), 1, "error: ValueError: odd\nhint: a bug in qsysd"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (SystemExit(5), 5, ""),
        (SystemExit(), 0, ""),
        (click.UsageError("No."), 2, "error: no\nhint: "),
        (ExistsError("taken", code=1), 1, "error: taken"),
    ],
)
def test_whatever_happens_ends_in_words_and_a_status(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, words: str
) -> None:
    failing(monkeypatch, error)
    found, shown = run_main(monkeypatch, "setup")
    assert found == status
    assert words in shown
    assert "Traceback" not in shown


@pytest.mark.usefixtures("host")
def test_a_traceback_is_shown_to_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSYSD_DEBUG", "")
    failing(monkeypatch, HostError("no bus"))
    status, shown = run_main(monkeypatch, "--debug", "setup")
    assert status == 7
    assert "Traceback" in shown
    assert "HostError: no bus" in shown


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("words", "status"), [(["--help"], 0), (["--version"], 0), (["zzz"], 2), (["show", "web9"], 3)]
)
def test_statuses_of_whole_commands(monkeypatch: pytest.MonkeyPatch, words: list[str], status: int) -> None:
    assert run_main(monkeypatch, *words)[0] == status


@pytest.mark.parametrize(
    "words",
    ["create web3 --image tiny", "delete web1 --yes", "start web1", "kill web1", "pause web1",
    "enable web1", "edit web1 -f -",
     "render", "setup", "doctor", "recover", "console web1", "image rm tiny --yes", "image build debian"],
)  # fmt: skip
def test_what_needs_root_says_so_before_anything_else(
    qsysd_command: Run, monkeypatch: pytest.MonkeyPatch, host: OwnHost, words: str
) -> None:
    Path(host.scope.image("tiny")).touch()
    monkeypatch.setattr(OwnHost, "require_root", Host.require_root)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = qsysd_command(*words.split(), stdin="")
    assert isinstance(result.exception, QsysdError), result.output
    assert (result.exception.message, result.exception.hint) == (
        "this needs root",
        "run it with sudo, or as root",
    )


# completion


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


def test_users_of_sudo_complete_vm_names(monkeypatch: pytest.MonkeyPatch, rendered: OwnHost) -> None:
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


def test_completion_without_the_permission_to_look_offers_nothing(
    monkeypatch: pytest.MonkeyPatch, host: OwnHost
) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    assert completions(monkeypatch, "qsysd start ") == []


def test_odd_files_are_not_offered(monkeypatch: pytest.MonkeyPatch, host: OwnHost) -> None:
    for name in (".#web1", "$(id)", "a b"):
        Path(host.scope.definitions_dir, f"{name}.yaml").touch()
    assert completions(monkeypatch, "qsysd start ") == ["web1", "web2"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(qsysd_command: Run, shell: str) -> None:
    result = qsysd_command("completion", shell)
    assert result.exit_code == 0
    assert "_QSYSD_COMPLETE=" in result.output

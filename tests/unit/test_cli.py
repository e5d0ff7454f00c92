"""The command line as a whole: help, usage errors, exit statuses."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from cli_host import COMMANDS, OwnHost, Run, run_main
from click.testing import CliRunner

import qsysd
from qsysd.cli import foreign
from qsysd.cli.main import ALIASES, GROUPS, VERBS, command
from qsysd.cli.usage import DESTRUCTIVE, similar
from qsysd.errors import (
    KINDS,
    ExistsError,
    HostError,
    QsysdError,
)
from qsysd.host import checks
from qsysd.host.context import Host
from qsysd.operations import create, setup

pytest_plugins = ("cli_fixtures",)

# help


@pytest.mark.parametrize("words", ["", *COMMANDS])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(words: str, option: str) -> None:
    result = CliRunner().invoke(command, [*words.split(), option], prog_name="qsysd")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: qsysd {words}".rstrip())
    assert all(len(line) <= 100 for line in result.output.splitlines())


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != "image"])
def test_help_has_examples_whose_options_exist(words: str) -> None:
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


def test_help_lists_each_verb_with_its_description() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    for verb, line in VERBS.items():
        assert re.search(f"^  {verb}(, [a-z]+)?  +{re.escape(line)}$", text, re.MULTILINE)
        assert line[0].isupper()
        assert line.endswith(".")


def test_help_imports_no_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    verbs = {f"qsysd.cli.{verb}" for verb in VERBS}
    for name in verbs & set(sys.modules):
        monkeypatch.delitem(sys.modules, name)
    CliRunner().invoke(command, ["--help"])
    assert not verbs & set(sys.modules)


def test_a_command_has_the_name_of_its_verb() -> None:
    for verb in VERBS:
        assert COMMANDS[verb].name == verb


def test_without_a_verb_the_help_is_printed() -> None:
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
        ("create web3 --kernel /k --memory 1", "memory: 1 is too little memory"),
        ("create Web3 --image tiny", "'Web3' is not a name"),
        ("create web3 --image tiny --disk x", "disks[0].size: 'x' is not a size"),
        ("create web3 --image tiny --accel fast", "'fast' is not one of auto, kvm, tcg"),
        ("create web3 --initrd /x --image tiny", "initrd: needs 'kernel' as well"),
        ("image build debian --size x", "--size: 'x' is not a size"),
        ("image zzz", "unknown verb 'zzz'"),
    ],
)
def test_a_usage_error_exits_with_2_and_calls_no_operation(
    qsysd_command: Run, calls: list[Any], words: str, message: str
) -> None:
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
        ("create x --memory", "--memory needs a value", "qsysd create --help"),
        ("create x --image", "--image needs a value", "--image debian; qsysd image list shows the images"),
        ("image build --suite", "--suite needs a value", "qsysd image build --help"),
        ("create x", "missing --image, --kernel or --disk", "qsysd create x --image debian"),
        ("create X --memory 1G", "missing --image, --kernel or --disk", "qsysd create NAME --image debian"),
        (
            "create x --mac 52:54:00:00:00:01",
            "unknown option --mac",
            "--nic network=default,mac=52:54:00:12:34:56,address=10.83.0.50",
        ),
        (
            "create x --nic network=lan,ip=1",
            "--nic: unknown key 'ip'",
            "keys of --nic: name, network, mac, address",
        ),
        (
            "create x --image y --network none --nic lan",
            "--network none and other NICs exclude each other",
            "leave out --network none",
        ),
        ("create x --wait-timeout 0", "--wait-timeout: 0.0 is not in the range x>=1", "qsysd create --help"),
        ("logs web1 --lines -1", "--lines: -1 is not in the range x>=0", "qsysd logs --help"),
        ("completion tcsh", "SHELL: 'tcsh' is not one of 'bash', 'zsh', 'fish'", "qsysd completion --help"),
        ("--zzz", "unknown option --zzz", "qsysd --help"),
        (
            "image import http://x.org/a/Disk.qcow2?x=1",
            "http://x.org/a/Disk.qcow2?x=1 is a URL, not a file",
            "curl -LO 'http://x.org/a/Disk.qcow2?x=1'; qsysd image import Disk.qcow2 --name disk;"
            " then --image disk",
        ),
        ("start", "missing VM", "qsysd start VM... or qsysd start --all; qsysd list shows the VMs"),
    ],
)
def test_a_usage_error_has_a_message_and_a_hint(
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
        ("up web1", "qsysd start web1; qsysd create web1 --image debian"),
        ("tail web1", "qsysd logs web1 --follow"),
        ("zzz", "qsysd --help lists the verbs"),
        ("shutdown $(id)", "qsysd stop VM"),
    ],
)
def test_an_unknown_verb_has_a_hint_with_a_command(
    monkeypatch: pytest.MonkeyPatch, words: str, hint: str
) -> None:
    status, shown = run_main(monkeypatch, *words.split())
    assert status == 2
    assert shown.startswith("error: unknown verb ")
    assert shown.endswith(f"hint: {hint}\n")


@pytest.mark.parametrize("verb", DESTRUCTIVE)
def test_a_destructive_verb_is_never_suggested(verb: str) -> None:
    """Each word that is one letter away from such a verb."""
    near = {verb[:index] + verb[index + 1 :] for index in range(len(verb))}
    near |= {verb[:index] + letter + verb[index:] for index in range(len(verb) + 1) for letter in "aelst"}
    near |= {f"{verb}e", "resize", verb.upper()}
    assert {similar(word, [*VERBS, *ALIASES]) for word in near - {*VERBS}} & {*DESTRUCTIVE} == set()


def test_hints_for_foreign_verbs_name_verbs_that_exist() -> None:
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
def test_the_verb_help_prints_the_same_as_the_option(qsysd_command: Run, words: str) -> None:
    assert qsysd_command("help", *words.split()).output == qsysd_command(*words.split(), "--help").output


def test_each_verb_is_in_one_group_and_in_the_readme() -> None:
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
            "image: 'debian:12' is not a valid name of an image: images have no tags",
            "did you mean 'debian'? A release: qsysd image build debian --suite SUITE --name NAME",
        ),
        (
            "Debian",
            2,
            "image: 'Debian' is not a valid name of an image; allowed is [a-z][a-z0-9.-]{0,62}",
            "did you mean 'debian'?",
        ),
        (
            "./My disk.qcow2",
            2,
            "image: './My disk.qcow2' is not a valid name of an image: it is a file",
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
def test_a_wrong_image_name_is_one_error_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, host: OwnHost, name: str, status: int, error: str, hint: str
) -> None:
    monkeypatch.setattr(create, "_check_free", lambda host, name: None)
    monkeypatch.setattr(checks, "check_references", lambda host, spec, others: None)
    assert run_main(monkeypatch, "create", "web3", "--image", name) == (
        status,
        f"error: {error}\nhint: {hint}\n",
    )


# exit statuses


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `setup` raise an error."""

    def fail(host: Host) -> list[str]:
        raise error

    monkeypatch.setattr(setup, "setup", fail)


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.usefixtures("host")
def test_each_kind_of_error_has_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, kind: type[QsysdError]
) -> None:
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
def test_every_exception_ends_with_a_message_and_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, words: str
) -> None:
    failing(monkeypatch, error)
    found, shown = run_main(monkeypatch, "setup")
    assert found == status
    assert words in shown
    assert "Traceback" not in shown


@pytest.mark.usefixtures("host")
def test_a_traceback_is_printed_with_debug_only(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_exit_statuses_of_commands(monkeypatch: pytest.MonkeyPatch, words: list[str], status: int) -> None:
    assert run_main(monkeypatch, *words)[0] == status


@pytest.mark.parametrize(
    "words",
    ["create web3 --image tiny", "delete web1 --yes", "start web1", "kill web1", "pause web1",
    "enable web1", "edit web1 -f -",
     "render", "setup", "doctor", "recover", "console web1", "image rm tiny --yes", "image build debian"],
)  # fmt: skip
def test_a_verb_for_root_fails_first_for_other_users(
    qsysd_command: Run, monkeypatch: pytest.MonkeyPatch, host: OwnHost, words: str
) -> None:
    Path(host.scope.image("tiny")).touch()
    monkeypatch.setattr(OwnHost, "require_root", Host.require_root)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = qsysd_command(*words.split(), stdin="")
    assert isinstance(result.exception, QsysdError), result.output
    assert (result.exception.message, result.exception.hint) == (
        "root privileges are required",
        "run the command with sudo, or as root",
    )

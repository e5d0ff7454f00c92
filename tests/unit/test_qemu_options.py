"""QEMU's options: what is sent to a running QEMU is what a start gives it, and no value becomes an option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import systemd_syntax
from samples import any_vms

from qsysd import render
from qsysd.model.vm import VMSpec
from qsysd.paths import Scope
from qsysd.qemu import argv
from qsysd.qemu.options import Option, Value, Verbatim, blockdev, device, netdev, qom_object

# A directory whose name is as odd as a directory's can be.
SCOPE = Scope("/srv/a,b,,c =d,server=off 'e\" -S")

# Options that take no argument: all others of qsysd's take one.
SWITCHES = {"-nodefaults", "-no-user-config"}
# The key that QEMU gives the first value of a list if that has none (qemu-options.hx).
IMPLIED = {
    "-chardev": "backend", "-device": "driver", "-machine": "type", "-netdev": "type",
    "-object": "qom-type", "-sandbox": "enable",
}  # fmt: skip
LISTS = {*IMPLIED, "-blockdev", "-m", "-mon", "-name", "-smp"}


def command_line(arguments: list[str]) -> list[tuple[str, str | None]]:
    """Return each option with its value as QEMU reads a command line."""
    found: list[tuple[str, str | None]] = []
    words = iter(arguments)
    for word in words:
        found.append((word, None if word in SWITCHES else next(words)))
    return found


def keyval(text: str, implied: str = "") -> dict[str, str]:
    """Return a list of values as QEMU reads it: a single comma ends a value, a doubled one is a comma."""
    found: dict[str, str] = {}
    while text:
        key, value = "", ""
        equals, comma = text.find("="), text.find(",")
        if not found and implied and (equals < 0 or 0 <= comma < equals):
            key = implied
        else:
            key, _, text = text.partition("=")
        while text:
            part, separator, text = text.partition(",")
            value += part
            if not separator or not text.startswith(","):
                break
            value, text = value + ",", text[1:]
        assert key not in found, f"{key} is given twice"
        found[key] = value
    return found


def flat(values: Mapping[str, Value], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield what QEMU makes of values in JSON: the same as of these texts in a list."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif value is True or value is False:
            yield prefix + key, "on" if value else "off"
        else:
            yield prefix + key, str(value)


def everything(spec: VMSpec) -> list[Option]:
    return [option for option in argv.options(spec, SCOPE) if isinstance(option, Option)]


def test_a_list_is_read_as_qemu_reads_it() -> None:
    assert keyval("on,x=deny", "enable") == {"enable": "on", "x": "deny"}
    assert keyval("a=b,,c,,,d=,e==f") == {"a": "b,c,", "d": "", "e": "=f"}


@pytest.mark.parametrize(
    "value", ["", ",", ",,", "a,b=c", "a=b", " ", "a\nb", "-S", "on,server=off", "é", "'\""]
)
def test_a_value_stays_one_value(value: str) -> None:
    for option in (
        device("x", {"id": value, "last": 1}),
        netdev("x", {"id": value, "last": 1}),
        qom_object("x", {"id": value, "last": 1}),
        blockdev("x", {"id": value, "last": 1}),
    ):
        name, text = option.arguments()
        assert keyval(text, IMPLIED.get(name, "")) == dict(flat(option.values))


def test_values_of_qmp_have_a_form_on_the_command_line() -> None:
    option = blockdev("qcow2", {"read-only": False, "cache": {"direct": True}, "size": 512})
    assert option.arguments() == [
        "-blockdev", "driver=qcow2,read-only=off,cache.direct=on,size=512",
    ]  # fmt: skip


def test_a_value_that_is_not_given_is_left_out() -> None:
    assert device("x", {"id": "a", "serial": None, "romfile": ""}).values == {
        "driver": "x", "id": "a", "romfile": "",
    }  # fmt: skip


def test_the_arguments_of_an_option_hold_the_values_that_are_sent() -> None:
    for spec in any_vms(60, seed=8):
        for option in everything(spec):
            name, text = option.arguments()
            assert name == option.name
            assert keyval(text, IMPLIED.get(name, "")) == dict(flat(option.values))


def test_an_option_that_can_be_sent_names_its_command() -> None:
    commands = {
        "-device": "device_add", "-netdev": "netdev_add",
        "-blockdev": "blockdev-add", "-object": "object-add",
    }  # fmt: skip
    for spec in any_vms(20, seed=9):
        for option in everything(spec):
            assert option.command == commands.get(option.name, "")


def test_no_value_of_a_definition_adds_an_option() -> None:
    for spec in any_vms(60, seed=10):
        # As QEMU gets them: through the environment file, and split by systemd.
        variables = systemd_syntax.environment_file(render.vm(spec, SCOPE).environment)
        arguments = systemd_syntax.split(variables["QEMU_ARGS"])
        own = len(arguments) - len(spec.qemu_args)
        assert arguments[own:] == list(spec.qemu_args)
        found = command_line(arguments[:own])
        expected = argv.options(spec, SCOPE)
        assert [name for name, _ in found] == [option.name for option in expected]
        for (name, text), option in zip(found, expected, strict=True):
            if isinstance(option, Verbatim):
                assert (text, name in LISTS) == (option.value, False)
            else:
                assert keyval(text or "", IMPLIED.get(name, "")) == dict(flat(option.values))


def test_the_values_are_those_of_the_definition() -> None:
    for spec in any_vms(60, seed=11):
        found = command_line(argv.build(spec, SCOPE)[: len(argv.build(spec, SCOPE)) - len(spec.qemu_args)])
        lists = [(name, keyval(text or "", IMPLIED.get(name, ""))) for name, text in found if name in LISTS]
        assert ("-uuid", spec.uuid) in found
        assert ("-machine", {"type": spec.machine}) in lists
        assert ("-m", {"size": f"{spec.memory_mib}M"}) in lists
        assert ("-smp", {"cpus": str(spec.cpus)}) in lists
        cards = [values for _, values in lists if values.get("driver") == "virtio-net-pci"]
        assert [card["mac"] for card in cards] == [nic.mac for nic in spec.nics]
        logs = [values.get("logfile") for name, values in lists if name == "-chardev"]
        assert logs == [None, None, None, SCOPE.console_log(spec.name)]
        if spec.kernel:
            assert ("-kernel", spec.kernel.path) in found
            assert (("-append", spec.kernel.append) in found) is bool(spec.kernel.append)

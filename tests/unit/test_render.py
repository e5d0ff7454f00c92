"""Quoting, held against systemd's own rules, and what a VM's definition renders to."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace

import jinja2
import pytest
import systemd_syntax
from samples import NASTY, any_vms, vm

from qsysd import interface_names, render
from qsysd.model.boot import Kernel
from qsysd.model.network import NetworkKind, NetworkSpec
from qsysd.model.nic import Nic
from qsysd.model.vm import Accel
from qsysd.paths import Scope
from qsysd.qemu import argv
from qsysd.runtime.ports import parse_ports

SCOPE = Scope()
ALPHABET = "ab \t'\"\\`$#;%=,{}~é\u2028\u0085"


def odd_texts(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(ALPHABET, k=chance.randint(0, 12))) for _ in range(count)]


def variables(text: str) -> dict[str, str]:
    return systemd_syntax.environment_file(text)


# the reference itself, against examples from systemd.exec(5), systemd.service(5) and systemd's own tests


def test_the_reference_reads_environment_files_as_systemd_does() -> None:
    text = (
        '# comment\n; too\n\na=a\n  b = b c  \nc=\'single "x" \\n\'\nd="double \\" \\\\ \\` \\$ \\n"\n'
        "e=un\\quoted\\ \nf=one\\\ntwo\ng='a'\"b\"c\nh=\ni=x # not a comment\nj='two\nlines'\n"
        "# a comment \\\nk=hidden\nl=seen\n"
    )
    assert variables(text) == {
        "a": "a", "b": "b c", "c": 'single "x" \\n', "d": 'double " \\ ` $ \\n', "e": "unquoted ",
        "f": "onetwo",
        "g": "abc", "h": "", "i": "x # not a comment", "j": "two\nlines", "l": "seen",
    }  # fmt: skip


def test_the_reference_splits_as_systemd_does() -> None:
    assert systemd_syntax.split("one 'two two' too") == ["one", "two two", "too"]
    assert systemd_syntax.split(' "" \'\' a"b c"d \\"x\\" "a\\\\b" \\ y \n z') == [
        "", "", "ab cd", '"x"', "a\\b", " y", "z",
    ]  # fmt: skip


# quoting


@pytest.mark.parametrize("value", [*NASTY, *odd_texts(200, seed=3), "two\nlines", "x\n", "\n"])
def test_a_value_of_an_environment_file_survives(value: str) -> None:
    assert variables(f"A=1\nX={render.env_value(value)}\nB=2\n") == {"A": "1", "X": value, "B": "2"}


@pytest.mark.parametrize("value", ["\0", "a\x01", "\x1b[2J", "\r", "\x7f", "\x08", "\x0c"])
def test_control_characters_do_not_get_into_an_environment_file(value: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        render.env_value(value)


@pytest.mark.parametrize("argument", [*NASTY, *odd_texts(200, seed=4)])
def test_an_argument_survives(argument: str) -> None:
    for arguments in ([argument], ["-x", argument, "-y"], [argument, argument]):
        text = render.words(arguments)
        assert systemd_syntax.split(text) == arguments
        # and through the environment file as well, which unquotes once more
        assert systemd_syntax.split(variables(f"Q={render.env_value(text)}\n")["Q"]) == arguments


def test_any_arguments_survive_together() -> None:
    texts = [text for text in odd_texts(300, seed=5) if "\n" not in text]
    for group in itertools.batched(texts, 7) if hasattr(itertools, "batched") else [texts]:
        text = render.env_value(render.words(group))
        assert systemd_syntax.split(variables(f"Q={text}\n")["Q"]) == list(group)


def test_each_option_begins_a_line() -> None:
    assert render.words(["-m", "512", "-device", "x,y=1", "a b"]) == '-m 512\n-device x,y=1 "a b"'
    assert render.words([]) == ""


def test_an_argument_with_a_line_break_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        render.words(["a\nb"])


@pytest.mark.parametrize("value", ["/a%b", "%i", "%%", "100%", "/plain"])
def test_a_value_of_a_unit_survives(value: str) -> None:
    assert systemd_syntax.expand(render.unit_value(value), i="web1") == value


# a VM


def test_what_the_unit_gets_is_what_was_asked_for() -> None:
    for spec in any_vms(15, seed=6):
        rendered = render.vm(spec, SCOPE)
        found = variables(rendered.environment)
        assert systemd_syntax.split(found["QEMU_ARGS"]) == argv.build(spec, SCOPE)
        assert found["QSYSD_VM"] == spec.name
        assert found["QSYSD_DIGEST"] == rendered.digest
        assert found["QSYSD_STOP_TIMEOUT"] == str(spec.stop_timeout)
        ports = parse_ports(found["QSYSD_NICS"])
        assert [(port.mac, port.network, port.address) for port in ports] == [
            (nic.mac, nic.network, nic.address) for nic in spec.nics
        ]
        if spec.accel is Accel.AUTO:
            assert "QSYSD_ACCEL" not in found
            assert ("QSYSD_CPU" in found) is (spec.cpu is not None)
        else:
            assert systemd_syntax.split(found["QSYSD_ACCEL"]) == ["-accel", spec.accel.value]
            assert systemd_syntax.split(found["QSYSD_CPU"])[0] == "-cpu"


def test_no_definition_can_say_more_in_the_drop_in_than_it_is_asked_for() -> None:
    allowed = {
        ("Unit", "Wants"),
        ("Unit", "After"),
        ("Service", "Environment"),
        ("Service", "TimeoutStopSec"),
        ("Service", "MemoryMax"),
        ("Service", "BindPaths"),
        ("Service", "ReadOnlyPaths"),
    }
    for spec in any_vms(15, seed=9):
        lines = systemd_syntax.unit(render.vm(spec, SCOPE).drop_in)
        assert {(section, name) for section, name, _ in lines} <= allowed
        found = {
            key: [systemd_syntax.expand(value) for _, name, value in lines if name == key]
            for key in ("BindPaths", "ReadOnlyPaths")
        }
        files = [file for file in (spec.kernel.path, spec.kernel.initrd) if file] if spec.kernel else []
        # at its own place: the privileged steps get this mount too; with a minus sign what is missing is
        # passed over
        assert found["BindPaths"] == [f"-{file}" for file in files]
        assert found["ReadOnlyPaths"] == [f"-+{file}" for file in files]
        limit = [f"{spec.memory_limit_mib}M"] if spec.memory_limit_mib else []
        assert [value for _, name, value in lines if name == "MemoryMax"] == limit
        for _, name, value in lines:
            if name in ("Wants", "After"):
                assert re.fullmatch(r"(qemu-vm|qsysd-network|qsysd-dhcp)@[a-z][a-z0-9-]*\.service", value)


def test_the_backstop_lies_behind_the_vms_own_time_out() -> None:
    lines = systemd_syntax.unit(render.vm(vm(), SCOPE).drop_in)
    assert ("Service", "TimeoutStopSec", f"{90 + render.STOP_BACKSTOP}s") in lines


def test_networks_are_wanted_once_and_ordered_and_dependencies_only_ordered() -> None:
    nics = (
        Nic("net0", "lan", "52:54:00:00:00:01"),
        Nic("net1", "dmz", "52:54:00:00:00:02"),
        Nic("net2", "lan", "52:54:00:00:00:03"),
    )
    lines = systemd_syntax.unit(render.vm(vm(nics=nics, depends_on=("db1",)), SCOPE).drop_in)
    wanted = [value for _, name, value in lines if name == "Wants"]
    assert wanted == [
        "qsysd-network@lan.service", "qsysd-dhcp@lan.service", "qsysd-network@dmz.service",
        "qsysd-dhcp@dmz.service",
    ]  # fmt: skip
    assert [value for _, name, value in lines if name == "After"] == [*wanted, "qemu-vm@db1.service"]


def test_the_digest_tells_renderings_apart() -> None:
    kernel = Kernel("/boot/vmlinuz")
    specs = [
        vm(), vm(memory_mib=513), vm(cpus=3), vm(qemu_args=("-snapshot",)), vm(accel=Accel.KVM),
        vm(stop_timeout=91),
        vm(depends_on=("db1",)), vm(kernel=kernel), vm(kernel=replace(kernel, append="quiet")),
        vm(image="other"),
        vm(nics=()), vm(cpu="host"), vm(name="web2"), vm(seed=False),
    ]  # fmt: skip
    digests = [render.vm(spec, SCOPE).digest for spec in specs]
    assert len(set(digests)) == len(specs)
    assert render.vm(vm(), SCOPE).digest == digests[0]
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests)


def test_only_what_is_rendered_counts_for_the_digest() -> None:
    assert render.vm(vm(ssh_keys=(), user=None), SCOPE).digest == render.vm(vm(), SCOPE).digest


def test_a_template_that_lacks_a_value_fails() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render.template("vm.conf.j2", definition="x")


# the unit


@pytest.fixture(params=[252, 253, 254, 257])
def unit(request: pytest.FixtureRequest) -> list[tuple[str, str, str]]:
    helper = ["/usr/bin/python3", "-I", "/var/lib/qsysd/helper/current/qsysd-helper"]
    text = render.unit(
        SCOPE,
        systemd_version=request.param,
        helper=helper,
        after_stop="/var/lib/qsysd/helper/current/after-stop",
        qemu="/usr/bin/qemu-system-x86_64",
    )
    lines = systemd_syntax.unit(text)
    assert ("Service", "RestartSteps", "4") in lines if request.param >= 254 else "RestartSteps" not in text
    return lines


def values(unit: list[tuple[str, str, str]], name: str) -> list[str]:
    return [value for _, key, value in unit if key == name]


def test_the_unit_keeps_the_contract(unit: list[tuple[str, str, str]]) -> None:
    assert values(unit, "Type") == ["exec"]
    assert values(unit, "Restart") == ["on-abnormal"]
    assert values(unit, "User") == ["qv-%i"]
    assert values(unit, "DynamicUser") == ["yes"]
    assert values(unit, "CapabilityBoundingSet") == [""]
    assert values(unit, "NoNewPrivileges") == ["yes"]
    assert values(unit, "SyslogLevelPrefix") == ["no"]
    assert values(unit, "DevicePolicy") == ["closed"]
    assert values(unit, "SystemCallFilter") == [
        "@system-service seccomp",
        "~@privileged io_uring_setup io_uring_enter io_uring_register userfaultfd",
    ]
    assert values(unit, "ExecStart") == ["/usr/bin/qemu-system-x86_64 $QSYSD_ACCEL $QSYSD_CPU $QEMU_ARGS"]
    # what is set by hand or by the host boot comes first, so that a VM's own file wins
    assert values(unit, "EnvironmentFile") == ["-/run/qsysd/acceleration.env", "/etc/qsysd/vms/%i.env"]


def test_qemu_alone_is_never_privileged(
    unit: list[tuple[str, str, str]],
) -> None:
    for name, value in [(name, value) for _, name, value in unit if name.startswith("Exec")]:
        assert value.startswith("+") is (name != "ExecStart"), (name, value)
        # a shell reads a script of ours, never a line with the unit's words in it
        assert value.startswith("+/bin/sh /var/lib/qsysd/helper/") is (name == "ExecStopPost")
        assert " -c " not in value
        # one command, and nothing that systemd would expand but the instance and QEMU's arguments
        assert not set(value) & set(";|&<>`\"'\\")


def test_what_is_mounted_for_qemu_lies_at_its_own_place(unit: list[tuple[str, str, str]]) -> None:
    """systemd applies these to the privileged steps too, on the host's root: they must see it as it is."""
    assert values(unit, "RootDirectoryStartOnly") == ["yes"]
    assert values(unit, "RootDirectory") == ["/run/qsysd/roots/%i"]
    mounted = [path for value in values(unit, "BindPaths") for path in value.split()]
    assert not any(":" in path for path in mounted)
    # and of these, all but what is the VM's own is read-only to QEMU
    read_only, runtime = values(unit, "ReadOnlyPaths")
    assert read_only.replace("+", "").split() == [path for path in mounted if not path.endswith("/%i")]
    assert [path for path in mounted if path.endswith("/%i")] == ["-/var/lib/qsysd/vms/%i"]
    assert runtime == "+/run +/run/qsysd/vms/%i"
    for _, name, _ in unit:
        assert name not in ("BindReadOnlyPaths", "TemporaryFileSystem")


def test_every_specifier_of_the_unit_is_the_instance_name(unit: list[tuple[str, str, str]]) -> None:
    for _, _, value in unit:
        systemd_syntax.expand(value, i="web1")


def test_the_user_of_a_start_is_looked_for_where_systemd_leaves_it(
    unit: list[tuple[str, str, str]],
) -> None:
    (directory,) = values(unit, "RuntimeDirectory")
    assert SCOPE.runtime("web1") == f"/run/{systemd_syntax.expand(directory, i='web1')}"
    assert values(unit, "RuntimeDirectoryMode") == ["0700"]


# networks


@pytest.mark.parametrize("name", ["default", "a", "a-very-long-name-of-28-chars"])
def test_the_files_of_a_network(name: str) -> None:
    files = render.network_files(NetworkSpec(name=name, kind=NetworkKind.NAT, subnet="10.83.0.0/24"), SCOPE)
    assert set(files) == {
        SCOPE.network_environment(name),
        SCOPE.network_rules(name),
        SCOPE.dnsmasq_config(name),
    }
    found = variables(files[SCOPE.network_environment(name)])
    assert found == {
        "QSYSD_NETWORK": name,
        "QSYSD_KIND": "nat",
        "QSYSD_BRIDGE": interface_names.bridge(name),
        "QSYSD_GATEWAY": "10.83.0.1/24",
        "QSYSD_RULES": SCOPE.network_rules(name),
    }
    assert f"table ip qsysd_{name} {{" in files[SCOPE.network_rules(name)]
    assert f"interface={interface_names.bridge(name)}\n" in files[SCOPE.dnsmasq_config(name)]

"""Definitions: every key, its valid and invalid values, and all errors at once."""

from __future__ import annotations

import json

import pytest
from definitions import parse, problem, problems, valid
from samples import KEY, MAC, UUID

from qsysd.config import dump, load
from qsysd.errors import InvalidError
from qsysd.model.boot import Kernel
from qsysd.model.defaults import Defaults
from qsysd.model.disk import Disk
from qsysd.model.field import keys
from qsysd.model.nic import Nic
from qsysd.model.vm import Accel, VMSpec

GIB = 1024**3


def test_every_key_is_read() -> None:
    text = f"""\
name: web1
uuid: {UUID}
machine: pc-q35-7.2
memory: 2G
memory_limit: 3G
cpus: 4
cpu: host,-vmx
accel: kvm
image: debian
disks: [{{size: 20G}}, {{}}]
nics:
- {{network: lan, mac: 52:54:00:ab:cd:ef, address: 10.0.0.5}}
- {{}}
kernel: /boot/vmlinuz
initrd: /boot/initrd
append: console=ttyS0 quiet
seed: false
user: admin
ssh_keys: [{KEY}]
depends_on: [db1]
stop_timeout: 2min
qemu_args: [-device, "usb-ehci,id=usb0"]
"""
    assert parse(text) == VMSpec(
        name="web1",
        uuid=UUID,
        machine="pc-q35-7.2",
        memory_mib=2048,
        memory_limit_mib=3072,
        cpus=4,
        cpu="host,-vmx",
        accel=Accel.KVM,
        image="debian",
        image_digest=None,
        disks=(Disk("disk0", 20 * GIB), Disk("disk1", None)),
        nics=(Nic("net0", "lan", "52:54:00:ab:cd:ef", "10.0.0.5"), Nic("net1", "default", "", None)),
        kernel=Kernel("/boot/vmlinuz", "/boot/initrd", "console=ttyS0 quiet"),
        seed=False,
        user="admin",
        ssh_keys=(KEY,),
        depends_on=("db1",),
        stop_timeout=120,
        qemu_args=("-device", "usb-ehci,id=usb0"),
    )


def test_a_key_that_is_left_out_has_its_default() -> None:
    spec = parse("name: web1\nimage: debian")
    assert spec == VMSpec(
        name="web1",
        uuid="",
        machine="",
        memory_mib=1024,
        memory_limit_mib=None,
        cpus=1,
        cpu=None,
        accel=Accel.AUTO,
        image="debian",
        image_digest=None,
        disks=(),
        nics=(Nic("net0", "default", "", None),),
        kernel=None,
        seed=True,
        user=None,
        ssh_keys=(),
        depends_on=(),
        stop_timeout=90,
        qemu_args=(),
    )


def test_the_defaults_of_the_host_replace_the_built_in_ones() -> None:
    host = load.parse_defaults(
        "accel: tcg\nmemory: 2G\ncpus: 3\ndisk_size: 5G\nnetwork: lan\nstop_timeout: 10s", "qsysd.yaml"
    )
    assert host == Defaults(Accel.TCG, 2048, 3, 5 * GIB, "lan", 10)
    spec = parse("name: web1\nimage: debian\nnics: [{}]", defaults=host)
    assert (spec.accel, spec.memory_mib, spec.cpus, spec.stop_timeout) == (Accel.TCG, 2048, 3, 10)
    assert spec.nics == (Nic("net0", "lan", "", None),)


@pytest.mark.parametrize("text", ["", "\n", "# only\n  # comments\n", "---\n"])
def test_defaults_may_be_empty(text: str) -> None:
    assert load.parse_defaults(text, "qsysd.yaml") == Defaults()


def test_the_first_file_of_defaults_shows_every_key_and_sets_none() -> None:
    text = dump.commented(Defaults())
    assert load.parse_defaults(text, "qsysd.yaml") == Defaults()
    shown = text.partition("\n")[2].replace("#", "")
    assert load.parse_defaults(shown, "qsysd.yaml") == Defaults()
    assert [line.partition(":")[0] for line in shown.splitlines()] == list(keys(Defaults))


def test_defaults_are_checked() -> None:
    with pytest.raises(InvalidError, match=r"qsysd.yaml:1: memory: .*\nqsysd.yaml:2: unknown key 'cpu'"):
        load.parse_defaults("memory: 1\ncpu: host\n", "qsysd.yaml")


def test_an_empty_list_of_nics_differs_from_a_missing_one() -> None:
    assert valid("nics: []").nics == ()
    assert valid("nics:").nics == (Nic("net0", "default", "", None),)


def test_a_vm_with_an_image_has_a_seed_unless_it_is_false() -> None:
    assert not parse("name: web1\nkernel: /boot/vmlinuz").seed
    assert parse("name: web1\nkernel: /boot/vmlinuz\nseed: true").seed
    assert not valid("seed: false").seed


def test_keys_without_a_value_count_as_left_out() -> None:
    nothing = "".join(f"{key}:\n" for key in keys(VMSpec) if key not in ("name", "image"))
    assert valid(nothing) == valid("")
    assert problems("name:\nimage: debian") == ["web1.yaml:1: the key 'name' is missing"]


def test_all_errors_at_once_in_the_order_of_the_file_each_with_line_and_path() -> None:
    text = """\
name: Web_1
memroy: 512M
cpus: two
disks:
- {size: 10G}
- {sise: 10G}
nics:
- network: default
  mac: 52:54:00:zz:34:56
- address: 10.0.0.256
depends_on: [db1, DB2]
seed: yes
"""
    assert problems(text) == [
        "web1.yaml:1: name: 'Web_1' is not a name; allowed is [a-z][a-z0-9-]{0,27}",
        "web1.yaml:2: unknown key 'memroy'; did you mean 'memory'?",
        "web1.yaml:3: cpus: 'two' is not a whole number",
        "web1.yaml:6: disks[1]: unknown key 'sise'; did you mean 'size'?",
        "web1.yaml:9: nics[0].mac: '52:54:00:zz:34:56' is not a MAC address; "
        "write for example '52:54:00:12:34:56'",
        "web1.yaml:10: nics[1].address: '10.0.0.256' is not an IPv4 address",
        "web1.yaml:11: depends_on[1]: 'DB2' is not a name; allowed is [a-z][a-z0-9-]{0,27}",
        "web1.yaml:12: seed: 'yes' is neither true nor false",
    ]


def test_errors_of_a_command_line_name_no_file() -> None:
    with pytest.raises(InvalidError) as caught:
        load.parse_vm("name: web1\nimage: debian\nmemory: 1\n", "")
    assert caught.value.message == "memory: 1 is too little memory; the minimum is 16M"
    assert caught.value.hint == "qsysd create --help"


@pytest.mark.parametrize("name", ["a", "web1", "a-", "a--b", "z9", "a" * 28, "yes1", "null"])
def test_valid_names(name: str) -> None:
    assert parse(f"name: '{name}'\nimage: debian").name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "1a",
        "-a",
        "a_b",
        "a.b",
        "a b",
        "a" * 29,
        "é",
        "a/b",
        "..",
        "a@b",
        "a%i",
        "a\\x2d",
        "a$b",
        "a:b",
        "a\u0301",
    ],
)
def test_invalid_names(name: str) -> None:
    (message,) = problems(f"name: {json.dumps(name)}\nimage: debian")
    assert "is not a name; allowed is [a-z][a-z0-9-]{0,27}" in message


def test_a_name_with_a_trailing_line_break_is_invalid() -> None:
    assert "control characters" in problems('name: "web1\\n"\nimage: debian')[0]


def test_the_name_must_be_that_of_the_file() -> None:
    message = "web1.yaml:2: name: 'web2' is not the file's name, 'web1'"
    assert problems("image: debian\nname: web2", name="web1") == [message]


# values that YAML 1.1 reads as another type


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("user: no", "user: no is a boolean in YAML, not text; write it in quotes: 'no'"),
        ("user: on", "user: on is a boolean in YAML, not text; write it in quotes: 'on'"),
        ("cpu: 486", "cpu: 486 is a number in YAML, not text; write it in quotes: '486'"),
        ("machine: 7.2", "machine: 7.2 is a number in YAML, not text; write it in quotes: '7.2'"),
        ("user: 2024-01-01",
        "user: 2024-01-01 is a time in YAML, not text; write it in quotes: '2024-01-01'"),
        ("kernel: /vmlinuz\nappend: 0123",
        "append: 0123 is a number in YAML, not text; write it in quotes: '0123'"),
        ("qemu_args: [-m, 1e3]", None),
        ("qemu_args: [-m, 1:30]",
        "qemu_args[1]: 1:30 is a number in YAML, not text; write it in quotes: '1:30'"),
        ("qemu_args: [-m, ~]", "qemu_args[1]: an empty item; write empty text as ''"),
        ("qemu_args:\n-", "qemu_args[0]: an empty item; write empty text as ''"),
        ("depends_on: [no]",
         "depends_on[0]: no is a boolean in YAML, not text; write it in quotes: 'no'"),
        ("cpus: 02", "cpus: 02 begins with a zero, which YAML reads as octal; write 2"),
        ("cpus: 0x2", "cpus: '0x2' is not a whole number"),
        ("cpus: 1_0", "cpus: '1_0' is not a whole number"),
        ("cpus: 2.0", "cpus: '2.0' is not a whole number"),
        ("cpus: 1:30", "cpus: '1:30' is not a whole number"),
        ("cpus: yes", "cpus: 'yes' is not a whole number"),
        ("cpus: -1", "cpus: '-1' is not a whole number"),
        ("cpus: 0", "cpus: 0 is out of range; allowed is 1 to 1024"),
        ("cpus: 1025", "cpus: 1025 is out of range; allowed is 1 to 1024"),
        ("memory: 0512", "memory: '0512' begins with a zero, which YAML reads as octal; write 512"),
        ("memory: 1e3", "memory: '1e3' is not a size; write for example 512M or 2G"),
        ("memory: 1_024", "memory: '1_024' is not a size; write for example 512M or 2G"),
        ("memory: 0", "memory: 0 is too little memory; the minimum is 16M"),
        ("memory: 15M", "memory: 15M is too little memory; the minimum is 16M"),
        ("memory: -1G", "memory: '-1G' is not a size; write for example 512M or 2G"),
        ("memory: .inf", "memory: '.inf' is not a size; write for example 512M or 2G"),
        ("memory: 1G\nmemory_limit: 1279M", "memory_limit: too small: at least 1280M, for QEMU itself"),
        ("disks: [{size: 0}]", "disks[0].size: 0 is too small for a disk; the minimum is 1M"),
        ("stop_timeout: 1:30", "stop_timeout: '1:30' is not a time; write for example 90s or 2min"),
        ("stop_timeout: 0", "stop_timeout: must be between 1s and 24h"),
        ("stop_timeout: 25h", "stop_timeout: must be between 1s and 24h"),
        ("seed: on", "seed: 'on' is neither true nor false"),
        ("seed: True", "seed: 'True' is neither true nor false"),
        ("seed: 1", "seed: '1' is neither true nor false"),
        ("accel: off", "accel: 'off' is not one of auto, kvm, tcg"),
        ("accel: KVM", "accel: 'KVM' is not one of auto, kvm, tcg"),
    ],
)  # fmt: skip
def test_a_scalar_means_its_text_or_is_refused(line: str, message: str | None) -> None:
    if message is None:  # 1e3 is a text in YAML 1.1, which wants a dot and a sign in a float
        assert valid(line).qemu_args == ("-m", "1e3")
    else:
        assert problem(line).split(": ", 1)[1] == message


@pytest.mark.parametrize(
    "mac", ["52:54:00:12:34:56", "'52:54:00:12:34:56'", "52:54:00:AB:cd:EF", "10:10:10:10:10:10"]
)
def test_a_mac_is_not_read_as_a_base_60_number(mac: str) -> None:
    assert valid(f"nics: [{{mac: {mac}}}]").nics[0].mac == mac.strip("'").lower()


@pytest.mark.parametrize(
    "mac", ["52-54-00-12-34-56", "52:54:00:12:34", "525400123456", "52:54:00:12:34:567", "x", "190:20:30"]
)
def test_invalid_macs(mac: str) -> None:
    assert "is not a MAC address" in problem(f"nics: [{{mac: {mac}}}]")


def test_a_multicast_mac_is_refused() -> None:
    assert "53:54:00:12:34:56 is a multicast address" in problem("nics: [{mac: '53:54:00:12:34:56'}]")


def test_two_nics_with_one_mac_are_refused() -> None:
    lines = f"nics:\n- {{mac: '{MAC}'}}\n- {{mac: '{MAC.upper()}'}}"
    assert problem(lines).endswith("nics: two NICs have the same MAC address")


def test_two_nics_with_one_address_are_refused() -> None:
    nics = "nics:\n- {address: 10.0.0.1}\n- {address: 10.0.0.1}"
    assert problem(nics).endswith("nics: two NICs have the same address")
    assert len(valid(f"{nics}\n  network: lan".replace("}\n  network", ", network") + "}").nics) == 2


@pytest.mark.parametrize("address", ["10.0.0.1", "'10.0.0.1'", "255.255.255.254"])
def test_valid_addresses(address: str) -> None:
    assert valid(f"nics: [{{address: {address}}}]").nics[0].address == address.strip("'")


@pytest.mark.parametrize(
    "address",
    ["10.0.0", "010.0.0.1", "'::1'", "10.0.0.1/24", "'10.0.0.1,1.2.3.4'", "10.0.0.0x1", "'\uff11.1.1.1'"],
)
def test_invalid_addresses(address: str) -> None:
    assert "is not an IPv4 address" in problem(f"nics: [{{address: {address}}}]")


@pytest.mark.parametrize(
    "path", ["/boot/vmlinuz", "/boot/vmlinuz-6.1.0-13+deb12~x", "/a=b@c_d/e.f", "/..a/b..", "//x"]
)
def test_valid_paths(path: str) -> None:
    assert valid(f"kernel: {path}\ninitrd: {path}").kernel == Kernel(path, path, "")


@pytest.mark.parametrize(
    "path",
    ["vmlinuz", "./x", "../x", "/a/../b", "/..", "/a/..", "/a b", "/a:b", "/a,b", "/a%b",
    "/a$b", '/a"b', "/a'b", "/a\\b", "/a*",
     "/é", "~/x", "-/x", "+/x", "!/x", "http://x/y"],
)  # fmt: skip
def test_paths_with_special_characters_are_refused(path: str) -> None:
    assert "is not a plain absolute path" in problem(f"kernel: {json.dumps(path)}")


def test_initrd_and_append_need_a_kernel() -> None:
    assert problem("initrd: /x").endswith("initrd: needs 'kernel' as well")
    assert problem("append: x").endswith("append: needs 'kernel' as well")


@pytest.mark.parametrize(
    "value",
    ["tab\\there", "a\\nb", "a\\rb", "nul\\0", "\\x1b[2J", "\\x7f", "\\b", "\\uFFFE", "\\uFDD0",
     "\\U0001FFFF"],
)  # fmt: skip
def test_control_characters_and_noncharacters_are_refused(value: str) -> None:
    for line in (f'kernel: /x\nappend: "{value}"', f'qemu_args: ["{value}"]'):
        assert "control characters, noncharacters and line breaks are not allowed" in problem(line)


def test_a_block_text_ends_in_a_line_break_and_is_refused() -> None:
    assert "line breaks are not allowed" in problem("kernel: /x\nappend: |\n  console=ttyS0\n")
    assert valid("kernel: /x\nappend: >-\n  a\n  b").kernel == Kernel("/x", None, "a b")


@pytest.mark.parametrize("value", ["Haswell,+x", "host", "x" * 256])
def test_valid_cpu_models(value: str) -> None:
    assert valid(f"cpu: '{value}'").cpu == value


@pytest.mark.parametrize(
    "line",
    ["cpu: '-x'", "cpu: 'a b'", "cpu: ''", "machine: 'q35,accel=kvm'", "machine: Q35", "machine: -x",
    "image: ../x", "image: A",
     "image: .x", "image: x/y", "user: Root", "user: 'a b'", "user: -o", "user: '0x'", "uuid: x",
     "uuid: '5F2B7B1E-6D3F-4A52-9C57-0D6F3A1B2C3D'",
     "depends_on: ['*']", "ssh_keys: [x]", "ssh_keys: ['ssh-rsa']", "ssh_keys: ['ssh-rsa AAAA\\tx']"],
)  # fmt: skip
def test_values_that_do_not_match_their_pattern_are_refused(line: str) -> None:
    key = line.split(":")[0]
    (message,) = problems(f"name: web1\nkernel: /x\n{line}")
    assert message.startswith(f"web1.yaml:3: {key}")
    assert " is not " in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("memory: [1]", "memory: must be a single value, not a list or a mapping"),
        ("memory: {a: 1}", "memory: must be a single value, not a list or a mapping"),
        ("disks: 10G", "disks: must be a list"),
        ("disks: {size: 10G}", "disks: must be a list"),
        ("disks: [10G]", "disks[0]: must be a mapping of keys to values"),
        ("disks: [[size]]", "disks[0]: must be a mapping of keys to values"),
        ("disks: [~]", "disks[0]: must be a mapping of keys to values"),
        ("nics: [default]", "nics[0]: must be a mapping of keys to values"),
        ("qemu_args: -m 1", "qemu_args: must be a list"),
        ("depends_on: db1", "depends_on: must be a list"),
        ("depends_on: [[db1]]", "depends_on[0]: must be a single value, not a list or a mapping"),
    ],
)
def test_values_of_another_type_are_refused(line: str, words: str) -> None:
    assert problem(line) == f"web1.yaml:3: {words}"


@pytest.mark.parametrize("text", ["web1", "- name: web1", "42", "~x", '"name: web1"'])
def test_a_file_that_is_not_a_mapping_is_refused(text: str) -> None:
    assert problems(text) == ["web1.yaml:1: must be a mapping of keys to values"]


def test_unknown_keys_are_refused_with_the_closest_known_key() -> None:
    assert problem("nonsense: 1") == "web1.yaml:3: unknown key 'nonsense'"
    assert problem("Memory: 1G") == "web1.yaml:3: unknown key 'Memory'; did you mean 'memory'?"
    assert problem("1: 2") == "web1.yaml:3: unknown key '1'"
    assert problem("yes: 2") == "web1.yaml:3: unknown key 'yes'"
    assert problem("<<: {memory: 1G}") == "web1.yaml:3: unknown key '<<'"
    assert problem("? [a, b]\n: c") == "web1.yaml:3: a key must be a single value, not a list or a mapping"
    assert problem("? {a: b}\n: c") == "web1.yaml:3: a key must be a single value, not a list or a mapping"


def test_a_long_unknown_key_is_shortened_in_the_message() -> None:
    assert len(problem(f"{'k' * 900}: 1")) < 200


def test_duplicate_keys_are_refused() -> None:
    assert problem("memory: 1G\nmemory: 2G") == "web1.yaml:4: duplicate key 'memory'"
    assert problem("disks: [{size: 1G, size: 2G}]") == "web1.yaml:3: disks[0]: duplicate key 'size'"


def test_a_vm_needs_an_image_a_kernel_or_a_disk() -> None:
    assert problems("name: web1")[0].endswith("nothing to boot from: give 'image', 'kernel' or 'disks'")
    for line in ("image: debian", "kernel: /x", "disks: [{size: 1G}]"):
        assert parse(f"name: web1\n{line}").name == "web1"


def test_a_vm_cannot_depend_on_itself() -> None:
    assert problem("depends_on: [db1, web1]").endswith("depends_on: a VM cannot depend on itself")

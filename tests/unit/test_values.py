"""Sizes, times and addresses as text."""

from __future__ import annotations

import random

import pytest

from qsysd import values

MIB = 1024**2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 * MIB), ("512M", 512 * MIB), ("512m", 512 * MIB), ("512MB", 512 * MIB),
        ("512MiB", 512 * MIB), ("512 MiB", 512 * MIB), (" 2G ", 2 * 1024**3), ("1.5G", 1536 * MIB),
        ("0.5K", 512), ("1T", 1024**4),
        ("4096B", 4096), ("4096b", 4096), ("0", 0), ("0.1M", 104857), ("9007199254740993B", 2**53 + 1),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert values.parse_size(text, default_unit="M") == size


@pytest.mark.parametrize(
    "text",
    ["", "M", "-1", "+1", "1e3", "1_000", "0x10", "1,5G", "1.G", ".5G", "1P", "1Gb/s", "two", "1 2",
    "\uff11G",
     "1M\n2", "B", "inf", "nan", "1.1.1M"],
)  # fmt: skip
def test_a_text_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        values.parse_size(text, default_unit="M")


def test_a_size_with_a_leading_zero_is_refused_with_the_way_to_write_it() -> None:
    with pytest.raises(ValueError, match=r"'0512M' begins with a zero.*write 512M"):
        values.parse_size("0512M", default_unit="M")
    with pytest.raises(ValueError, match=r"write 0$"):
        values.parse_size("000", default_unit="M")


def test_a_very_long_size_is_read_or_refused() -> None:
    for digits in (20, 400, 5000):
        try:
            assert values.parse_size("9" * digits, default_unit="M") > 10**19
        except ValueError as error:
            assert "size" in str(error)


def test_a_size_that_is_written_is_read_unchanged() -> None:
    chance = random.Random(1)
    for _ in range(500):
        size = chance.randrange(2 ** chance.randrange(1, 70))
        assert values.parse_size(values.format_size(size), default_unit="M") == size


def test_sizes_are_written_in_the_largest_unit_that_divides_them() -> None:
    sizes = (0, 1, 1024, 512 * MIB, 10 * 1024**3, 1024**4, 1536 * MIB)
    assert [values.format_size(size) for size in sizes] == ["0B", "1B", "1K", "512M", "10G", "1T", "1536M"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (187 * MIB, "187 MiB"), (1.25 * 1024**3, "1.2 GiB"),
     (5 * 1024**4, "5.0 TiB"), (5000 * 1024**4, "5000.0 TiB")],
)  # fmt: skip
def test_sizes_are_rounded_for_output(size: float, text: str) -> None:
    assert values.human_size(size) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("90 s", 90),
        ("90sec", 90),
        ("2min", 120),
        ("2m", 120),
        ("1h", 3600),
        ("0", 0),
        (" 5s ", 5),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert values.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1", "1.5h", "090", "1d", "1h30m", "12:30", "1e3", "5S", "infinity", "\uff15s"]
)
def test_a_text_that_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        values.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.9, "0 s"), (42, "42 s"), (60, "1 min"), (185, "3 min 5 s"), (7800, "2 h 10 min"),
     (3605, "1 h"), (86400 * 4 + 3700, "4 d 1 h"), (86400 + 59, "1 d")],
)  # fmt: skip
def test_durations_are_rounded_for_output(seconds: float, text: str) -> None:
    assert values.human_duration(seconds) == text


def test_new_macs_are_valid_local_unicast_and_differ() -> None:
    macs = {values.new_mac() for _ in range(100)}
    assert len(macs) > 95
    for mac in macs:
        assert values.MAC.fullmatch(mac)
        assert int(mac[:2], 16) & 0b11 == 0b10


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 😀 text", "plain é 日本 😀 text"),
        ("a\tb", "a\tb"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone?", "gone?"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]52;c;cGFzdGU=\x1b\\x", "x"),
        ("\x1b]0;without end", ""),
        ("a\rb\x08c\nd\x00", "abcd"),
        ("\x9b2J\x85\x90x", "2Jx"),
        ("\u202egnp.exe", "gnp.exe"),
        ("bad \udcff", "bad \\udcff"),
        ("\x1bZ\x1bcx", "cx"),
    ],
)
def test_text_of_a_guest_is_printed_without_control_characters(text: str, shown: str) -> None:
    assert values.printable(text) == shown
    values.printable(text).encode()

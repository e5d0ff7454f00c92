"""docs/performance.md shows the results in docs/performance.json, and `make bench-page` writes both."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import page
from chart import chart
from report import FLOOR, Report, Row, markdown, table

DOCS = Path(__file__).parents[2] / "docs"
MACHINE = {
    "taken": "2026-11-24T21:00:00Z",
    "processors": 2,
    "systemd": "252",
    "qemu": "7.2",
    "python": "3.11",
}
SECONDS = {FLOOR: [0.1, 0.2, 0.1], "qsysd": [0.2, 0.4, 0.2], "libvirt": [0.4, 0.8, 0.8]}


def sample() -> Report:
    """Return a small report of a comparison."""
    return Report(MACHINE, [Row("start & stop", SECONDS)], [{"name": "dnsmasq", "unit": "x", "rss_mib": 2.4}])


def test_the_table_of_the_page_is_that_of_the_results() -> None:
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    results = DOCS / "performance.json"
    if results.exists():
        assert page.with_table(text, Report.from_json(results.read_text(encoding="utf-8"))) == text
    else:
        assert "No results yet" in text


def test_the_table_is_replaced_and_the_text_around_it_is_not() -> None:
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    once = page.with_table(text, sample())
    assert page.with_table(once, sample()) == once
    assert once.partition(page.BEGIN)[0] == text.partition(page.BEGIN)[0]
    assert once.partition(page.END)[2] == text.partition(page.END)[2]
    assert "| start & stop | 0.50 (0.38 to 0.50) | 2.00 (2.00 to 2.00) | 200 ms | 800 ms |" in once


def test_a_ratio_is_that_of_one_turn() -> None:
    assert str(sample().rows[0].ratio("qsysd", FLOOR)) == "2.00 (2.00 to 2.00)"


def test_results_survive_being_written_and_read() -> None:
    assert Report.from_json(sample().to_json()) == sample()


def test_without_libvirt_the_table_has_the_floor_only() -> None:
    row = Row("list", {name: SECONDS[name] for name in (FLOOR, "qsysd")})
    report = Report(MACHINE, [row], [])
    assert "libvirt" not in table(report) + markdown(report)
    assert table(report).splitlines()[1].split()[-3:] == ["1.00", "100", "ms"]


def test_the_plot_is_valid_and_has_a_bar_for_each_row() -> None:
    root = ElementTree.fromstring(chart(sample()))
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "start & stop" in texts and "0.50" in texts

"""The plot of a comparison, as SVG: a bar for each row, from 1 to the ratio, on a logarithmic scale."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from report import Report

# Pixels.
BAR, GAP, LABEL, PLOT, MARGIN = 16, 8, 330, 400, 56
TOP = 48
# Powers of two at the ends of the scale, and the axis.
LOW, HIGH = -5, 3

QSYSD_IS_FASTER, LIBVIRT_IS_FASTER, AXIS, TEXT = "#2c7a4b", "#b5523b", "#c8ccd0", "#24292f"


def position(ratio: float) -> float:
    """Return where a ratio is on the horizontal axis."""
    power = min(max(math.log2(ratio), LOW), HIGH)
    return LABEL + PLOT * (power - LOW) / (HIGH - LOW)


def chart(report: Report) -> str:
    """Return a plot of qsysd's times as multiples of libvirt's."""
    rows = [row for row in report.rows if "libvirt" in row.seconds]
    bottom = TOP + len(rows) * (BAR + GAP)
    width, height = LABEL + PLOT + MARGIN, bottom + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="sans-serif" font-size="12" fill="{TEXT}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(LABEL, 16, "time of qsysd : time of libvirt; left of 1 qsysd is faster", anchor="start"),
    ]
    for power in range(LOW, HIGH + 1):
        x = position(2.0**power)
        label = f"{2**power}" if power >= 0 else f"1/{2**-power}"
        stroke = TEXT if power == 0 else AXIS
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{stroke}"/>')
        parts.append(text(x, TOP - 13, label, anchor="middle"))
    for number, row in enumerate(rows):
        ratio = row.ratio("qsysd", "libvirt").median
        y = TOP + number * (BAR + GAP)
        start, end = sorted((position(1), position(ratio)))
        colour = QSYSD_IS_FASTER if ratio < 1 else LIBVIRT_IS_FASTER
        parts += [
            text(LABEL - 10, y + BAR - 4, row.what, anchor="end"),
            f'<rect x="{start:.1f}" y="{y}" width="{end - start:.1f}" height="{BAR}" fill="{colour}"/>',
            text(position(1) + 6, y + BAR - 4, f"{ratio:.2f}", anchor="start")
            if ratio < 1
            else text(end + 6, y + BAR - 4, f"{ratio:.2f}", anchor="start"),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(x: float, y: float, content: str, *, anchor: str) -> str:
    """Return a text of the plot."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'

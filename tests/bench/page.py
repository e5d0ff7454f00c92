"""Write the last comparison into docs/: performance.json, performance.svg, the table of performance.md."""

from __future__ import annotations

import sys
from pathlib import Path

from chart import chart
from report import Report, markdown

REPOSITORY = Path(__file__).resolve().parents[2]
RESULT = REPOSITORY / "build/bench-compare.json"
DOCS = REPOSITORY / "docs"
BEGIN, END = "<!-- table: make bench-page -->\n", "<!-- end of the table -->\n"


def with_table(page: str, report: Report) -> str:
    """Return the page with the table of a report between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown(report)}\n\n{END}{after}"


def main() -> int:
    """Write the files and return the exit status."""
    if not RESULT.exists():
        print(f"{RESULT.relative_to(REPOSITORY)} does not exist: run `make bench-compare`", file=sys.stderr)
        return 1
    report = Report.from_json(RESULT.read_text())
    page = DOCS / "performance.md"
    (DOCS / "performance.json").write_text(report.to_json())
    (DOCS / "performance.svg").write_text(chart(report))
    page.write_text(with_table(page.read_text(), report))
    print("docs/performance.md, docs/performance.json, docs/performance.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())

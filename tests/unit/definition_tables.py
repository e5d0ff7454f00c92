"""The tables of docs/definition.md, generated from the models: `make docs` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path

from qsysd.model.defaults import Defaults
from qsysd.model.field import Change, Declaration, Inline, ListOf, declarations
from qsysd.model.network import NetworkSpec
from qsysd.model.parsers import Parser
from qsysd.model.vm import VMSpec

PAGE = Path(__file__).parents[2] / "docs/definition.md"
BEGIN = "<!-- keys of {}: written by `make docs` from qsysd/model -->"
END = "<!-- end -->"
TIMES = {
    Change.LIVE: "at once",
    Change.RESTART: "at a restart",
    Change.FIRST_BOOT: "at the guest's first boot only",
    Change.REMOVE: "can only be removed",
    Change.NEVER: "cannot be changed",
}


def rows(model: type, path: str = "") -> Iterator[tuple[str, Declaration]]:
    """Yield the path and the declaration of each key, those of parts and of items included."""
    for declared in declarations(model).values():
        if isinstance(declared.kind, Inline):
            yield from rows(declared.kind.model, path)
            continue
        yield f"{path}{declared.key}", declared
        if isinstance(declared.kind, ListOf) and isinstance(declared.kind.item, type):
            yield from rows(declared.kind.item, f"{path}{declared.key}[].")


def default(declared: Declaration) -> str:
    """Return the default of a key as the table shows it."""
    if declared.default_help:
        return declared.default_help
    if declared.numbered:
        return f"`{declared.numbered}0`, `{declared.numbered}1` …"
    if declared.required:
        return "required"
    if declared.default in (None, "", (), MISSING):
        return "none"
    assert isinstance(declared.kind, Parser)
    written = declared.kind.write(declared.default)
    return f"`{str(written).lower() if isinstance(written, bool) else written}`"


def table(model: type, *, times: bool) -> str:
    """Return the table of a model's keys. times: with the column of when a change takes effect."""
    header = ["key", "value", "default", *(["a change takes effect"] if times else [])]
    lines = [header, ["---"] * len(header)]
    for path, declared in rows(model):
        cells = [f"`{path}`", declared.help, default(declared)]
        lines.append([*cells, *([TIMES[declared.change]] if times else [])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def updated(page: str) -> str:
    """Return the page with its tables as the models declare them. Raise ValueError for a missing mark."""
    for name, text in (
        ("VMs", table(VMSpec, times=True)),
        ("defaults", table(Defaults, times=False)),
        ("networks", table(NetworkSpec, times=False)),
    ):
        begin = BEGIN.format(name)
        before, found, rest = page.partition(f"{begin}\n")
        _, ended, after = rest.partition(END)
        if not (found and ended):
            raise ValueError(f"{PAGE.name} has no section of the keys of {name}")
        page = f"{before}{begin}\n{text}{END}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

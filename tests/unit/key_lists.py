"""The lists of keys in docs/definition.md and docs/qsysd.yaml.5, from the models: `make docs` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path

from qsysd.model.defaults import Defaults
from qsysd.model.disk import Disk
from qsysd.model.field import Change, Declaration, Inline, ListOf, declarations
from qsysd.model.network import NetworkSpec
from qsysd.model.nic import Nic
from qsysd.model.parsers import Parser
from qsysd.model.vm import VMSpec

DOCS = Path(__file__).parents[2] / "docs"
MARK = "written by `make docs` from qsysd/model"
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
    """Return the default of a key as documentation shows it."""
    if declared.default_help:
        return declared.default_help
    if declared.numbered:
        return f"`{declared.numbered}0`, `{declared.numbered}1` and so on"
    if declared.required:
        return "required"
    if declared.default in (None, "", (), MISSING):
        return "none"
    assert isinstance(declared.kind, Parser)
    written = declared.kind.write(declared.default)
    return f"`{str(written).lower() if isinstance(written, bool) else written}`"


def table(model: type, *, times: bool) -> str:
    """Return a model's keys as a table in Markdown. times: with the column of when a change takes effect."""
    header = ["key", "value", "default", *(["a change takes effect"] if times else [])]
    lines = [header, ["---"] * len(header)]
    for path, declared in rows(model):
        cells = [f"`{path}`", declared.help, default(declared)]
        lines.append([*cells, *([TIMES[declared.change]] if times else [])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def manual(model: type) -> str:
    """Return a model's keys as an indented list of a manual page (man(7))."""
    lines = [".RS"]
    for path, declared in rows(model):
        text = f"{declared.help}. Default: {default(declared)}."
        lines += [f'.IP "{path}:"', _roff(text[0].upper() + text[1:])]
    return "".join(f"{line}\n" for line in [*lines, ".RE"])


def _roff(text: str) -> str:
    parts = text.replace("\\", "\\e").replace("-", "\\-").split("`")
    return "".join(f"\\fB{part}\\fR" if number % 2 else part for number, part in enumerate(parts))


def _replaced(page: str, begin: str, text: str, end: str) -> str:
    """Return a page with other text between two lines. Raise ValueError if the page lacks one of them."""
    before, found, rest = page.partition(f"{begin}\n")
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"a page has no lines {begin!r} and {end!r}")
    return f"{before}{begin}\n{text}{end}{after}"


def pages() -> dict[Path, str]:
    """Return the pages with the keys that the models declare."""
    definition, manual_page = DOCS / "definition.md", DOCS / "qsysd.yaml.5"
    texts = {path: path.read_text(encoding="utf-8") for path in (definition, manual_page)}
    for name, text in (
        ("VMs", table(VMSpec, times=True)),
        ("defaults", table(Defaults, times=False)),
        ("networks", table(NetworkSpec, times=False)),
    ):
        begin = f"<!-- keys of {name}: {MARK} -->"
        texts[definition] = _replaced(texts[definition], begin, text, "<!-- end -->")
    for name, model in (("disks", Disk), ("nics", Nic)):
        begin = f'.\\" keys of {name}: {MARK}'
        texts[manual_page] = _replaced(texts[manual_page], begin, manual(model), '.\\" end')
    return texts


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")

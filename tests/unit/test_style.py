"""Rules of docs/contributing.md about sizes, imports inside functions, open options and silenced rules."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qsysd.host import helper_install

ROOT = Path(helper_install.__file__).parents[2]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("qsysd", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
TEXTS = {source: (ROOT / source).read_text(encoding="utf-8") for source in SOURCES}
TREES = {source: ast.parse(text, source) for source, text in TEXTS.items()}
PACKAGE = [source for source in SOURCES if source.startswith("qsysd/")]

MODULE_LINES = 500

FUNCTION_LINES = 60

# Imports inside functions outside of runtime/, by module and what it imports, with the reason. Other reasons
# are not accepted: a cycle is solved by moving the shared part to a lower floor.
ADAPTER = "the adapter of a heavy library"
SEAM = "a part that almost no call of a frequent verb needs"
FUNCTION_IMPORTS = {
    ("qsysd/config/nodes.py", "yaml"): ADAPTER,
    ("qsysd/systemd/bus.py", "gi.repository"): ADAPTER,
    ("qsysd/systemd/bus.py", "pydbus"): ADAPTER,
    ("qsysd/names.py", "difflib"): f"{SEAM}: similar names, after an error",
    ("qsysd/host/changes.py", "qsysd.host"): f"{SEAM}: recovery, if an intent is pending",
    ("qsysd/host/intents.py", "json"): f"{SEAM}: the contents of an intent of an older version",
    ("qsysd/host/context.py", "qsysd.images.catalog"): f"{SEAM}: images, in `list` and `start`",
    ("qsysd/host/unit_jobs.py", "qsysd.host"): f"{SEAM}: what the journal reports, after a failed start",
    ("qsysd/requests/client.py", "qsysd.requests"): f"{SEAM}: the journal entry, in `list`",
    ("qsysd/operations/power.py", "qsysd.host"): f"{SEAM}: rendering of a stale definition",
    ("qsysd/operations/power.py", "qsysd.qemu.monitor"): f"{SEAM}: the QMP client, in `start` and `stop`",
    ("qsysd/operations/power.py", "qsysd.runtime.qmp"): f"{SEAM}: the QMP client, in `start` and `stop`",
    ("qsysd/operations/query.py", "qsysd.host"): f"{SEAM}: rendering, in `status`",
    ("qsysd/store/__init__.py", "qsysd.config"): f"{SEAM}: parsing, in `list` and in `start` without changes",
}
LISTED_FUNCTION_IMPORTS = 25

NOQA = re.compile(r"#\s*noqa\b", re.IGNORECASE)
NOQA_WITH_REASON = re.compile(NOQA.pattern + r": [A-Z]+[0-9]+(, ?[A-Z]+[0-9]+)*  # \S.+")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method, nested ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imports_inside_functions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and module of each import inside a function; of several names in one statement once."""
    for function in functions(tree):
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                yield node.lineno, node.module or ""
            elif isinstance(node, ast.Import):
                yield node.lineno, node.names[0].name


def test_a_module_is_short() -> None:
    too_long = [
        f"{source}: {lines} lines"
        for source, text in TEXTS.items()
        if (lines := text.count("\n")) > MODULE_LINES
    ]
    assert not too_long


def test_a_function_is_short() -> None:
    too_long = [
        f"{source}:{function.lineno} {function.name}: {lines} lines"
        for source, tree in TREES.items()
        for function in functions(tree)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    ]
    assert not too_long


def test_an_import_inside_a_function_outside_runtime_is_listed_with_its_reason() -> None:
    found = Counter(
        (source, module)
        for source in PACKAGE
        if not source.startswith("qsysd/runtime/")
        for _, module in set(imports_inside_functions(TREES[source]))
    )
    unlisted = [entry for entry in found if entry not in FUNCTION_IMPORTS]
    assert not unlisted
    assert sum(found[entry] for entry in FUNCTION_IMPORTS) < LISTED_FUNCTION_IMPORTS
    assert not [entry for entry in FUNCTION_IMPORTS if entry not in found], "the list has unused entries"


def test_the_options_of_a_function_are_typed() -> None:
    open_options = {
        source
        for source in PACKAGE
        for function in functions(TREES[source])
        if function.args.kwarg and ast.unparse(function.args.kwarg.annotation or ast.Name("Any")) == "Any"
    }
    assert not open_options, "`**name: Any` accepts every option, known or not"


def test_a_silenced_rule_has_a_reason() -> None:
    bare = [
        f"{source}:{number}"
        for source, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), 1)
        if NOQA.search(line) and not NOQA_WITH_REASON.search(line)
    ]
    assert not bare

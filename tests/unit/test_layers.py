"""The layers: which module imports which, imports inside functions included, and what only some may do."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from qsysd.host import helper_install

PACKAGE = Path(helper_install.__file__).parents[1]

ROW = re.compile(r"\| (\d+) \| ((?:`\w+` ?)+)\| .+ \|")


def table() -> list[tuple[int, frozenset[str]]]:
    """Return the rows of the table of floors in docs/architecture.md: the floor, and the modules on it."""
    page = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    section = page.split("\n## The floors\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    found = [(line, ROW.fullmatch(line)) for line in rows]
    assert all(match for _, match in found), [line for line, match in found if not match]
    return [(int(match[1]), frozenset(re.findall(r"\w+", match[2]))) for _, match in found if match]


TABLE = table()
FLOOR_OF = {module: floor for floor, modules in TABLE for module in modules}
ROW_OF = {module: modules for _, modules in TABLE for module in modules}

# The packages that may import a library which costs time or trust.
USERS = {
    "click": {"cli"},
    "jinja2": {"render"},
    "pydbus": {"systemd"},
    "gi": {"systemd"},
    "yaml": {"config"},
    "subprocess": {"process"},
    "termios": {"cli"},
    "pty": set(),
    "pickle": set(),
    "ctypes": {"runtime"},
}

# Too slow for a step that runs at each start and stop of a VM (qsysd/runtime/__init__.py).
SLOW = {
    "dataclasses",
    "enum",
    "hashlib",
    "json",
    "pathlib",
    "re",
    "socket",
    "subprocess",
    "tempfile",
    "typing",
}

PROCESS_STARTERS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}

# What only `cli` does; the helper's lines for the journal, and commands under --debug, are the exceptions.
PRINTING = {"runtime.unit", "runtime.spawn"}
OUTPUT = {"print", "input", "breakpoint", "exit", "quit"}
TERMINAL = {"sys.exit", "sys.stdin", "sys.stdout", "sys.stderr", "os.isatty", "os.get_terminal_size"}

# What the command line may import; for everything else it sends a request.
CLI_IMPORTS = {"config", "errors", "image_names", "model", "names", "paths", "requests", "values"}
# The verbs that a terminal is connected to are no requests.
CLI_EXCEPTIONS = {
    "cli.console": {"operations.guest"},
    "cli.editor": {"files", "process", "runtime.spawn"},
    "cli.logs": {"operations.logs"},
    "cli.progress": {"host.progress"},
    "cli.ssh": {"operations.guest", "process"},
    "cli.terminal": {"runtime.qmp"},
}


@dataclass(frozen=True)
class Import:
    """An import in a source. lazy: inside a function; types_only: under TYPE_CHECKING."""

    target: str
    lazy: bool
    types_only: bool
    line: int


def sources() -> dict[str, Path]:
    """Return every module of the package by its name below `qsysd`: `config`, `cli.vm`, `images`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        found[".".join(parts)] = path
    return found


SOURCES = sources()
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in SOURCES.items()}


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, *, lazy: bool = False, types_only: bool = False) -> Iterator[Import]:
    """Yield the imports below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, lazy, types_only, child.lineno)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute"
            module = child.module or ""
            for alias in child.names:
                below = f"{module}.{alias.name}"
                known = below.removeprefix("qsysd.") in SOURCES
                yield Import(below if known else module, lazy, types_only, child.lineno)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(child, lazy=lazy or inside, types_only=types_only or _is_type_checking(child))


def package(module: str) -> str:
    """Return the entry of the table that a module belongs to: its package's, or its own."""
    return module.split(".")[0]


def own_imports(module: str) -> Iterator[tuple[Import, str]]:
    """Yield a module's imports of qsysd itself, each with the target's name below `qsysd`."""
    for found in imports(TREES[module]):
        if found.target == "qsysd":
            yield found, "__init__"
        elif found.target.startswith("qsysd."):
            yield found, found.target.removeprefix("qsysd.")


def test_the_table_is_complete() -> None:
    modules = [module for _, row in TABLE for module in row]
    assert sorted(modules) == sorted({package(module) for module in SOURCES} - {"__init__"})


def test_the_floors_of_the_table_ascend() -> None:
    floors = [floor for floor, _ in TABLE]
    assert floors == sorted(floors)
    assert set(floors) == set(range(max(floors) + 1))


@pytest.mark.parametrize("module", [name for name in SOURCES if name != "__init__"])
def test_imports_go_down(module: str) -> None:
    mine = package(module)
    for found, target in own_imports(module):
        theirs = package(target)
        if theirs == "__init__" or theirs in ROW_OF[mine]:
            continue
        # A type may be on the same floor, but not on a higher one.
        limit = FLOOR_OF[mine] + found.types_only
        assert FLOOR_OF[theirs] < limit, f"{module}:{found.line} imports {target}"


def test_there_are_no_import_cycles() -> None:
    # The version, in the package's own `__init__`, imports nothing.
    graph = {
        module: {target for found, target in own_imports(module) if not found.types_only} - {"__init__"}
        for module in SOURCES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' ← '.join(error.args[1])}")


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("operations.")])
def test_no_verb_imports_a_verb(module: str) -> None:
    for found, target in own_imports(module):
        assert package(target) != "operations", f"{module}:{found.line} imports {target}"


def test_the_lowest_modules_import_nothing_of_qsysd() -> None:
    for module in ("errors", "values"):
        assert not list(own_imports(module))


@pytest.mark.parametrize("module", SOURCES)
def test_a_library_is_imported_only_where_it_may_be(module: str) -> None:
    for found in imports(TREES[module]):
        library = found.target.split(".")[0]
        if library in USERS and not found.types_only:
            assert package(module) in USERS[library], f"{module}:{found.line} imports {library}"


@pytest.mark.parametrize("module", [name for name in SOURCES if package(name) == "cli"])
def test_the_command_line_sends_requests(module: str) -> None:
    allowed = CLI_EXCEPTIONS.get(module, set())
    found = {target for found, target in own_imports(module) if not found.types_only}
    others = {target for target in found if package(target) not in CLI_IMPORTS | {"cli", "__init__"}}
    assert others == allowed
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "host":
            # edit asks for it before it opens the editor.
            assert node.attr == "require_root", f"{module}:{node.lineno} uses host.{node.attr}"


def test_every_package_is_in_setup_cfg() -> None:
    config = ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg", encoding="utf-8")
    packages = {
        ".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")
    }
    assert set(config["options"]["packages"].split()) == packages


def test_every_rule_about_a_library_is_needed() -> None:
    used = {
        (found.target.split(".")[0], package(name))
        for name in SOURCES
        for found in imports(TREES[name])
        if not found.types_only
    }
    for library, packages in USERS.items():
        assert {user for name, user in used if name == library} == packages


@pytest.mark.parametrize("module", SOURCES)
def test_only_spawn_and_process_start_processes(module: str) -> None:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            starts = node.attr in PROCESS_STARTERS or node.attr.startswith(("exec", "spawn"))
            assert not starts or (module == "runtime.spawn" and node.attr == "posix_spawn"), (
                f"{module}:{node.lineno} calls os.{node.attr}"
            )
        if isinstance(node, ast.keyword):
            assert node.arg != "shell", f"{module}:{node.lineno} passes shell="
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile"), f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", [name for name in SOURCES if package(name) != "cli"])
def test_only_the_command_line_prints_reads_a_terminal_or_exits(module: str) -> None:
    for node in ast.walk(TREES[module]):
        done = ""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OUTPUT:
            done = node.func.id
        elif isinstance(node, ast.Name) and node.id == "SystemExit":
            done = node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in TERMINAL:
            done = ast.unparse(node)
        if module in PRINTING and done in ("print", "sys.stderr"):
            continue
        assert not done, f"{module}:{getattr(node, 'lineno', 0)}: {done}"


def test_all_packages_are_installed() -> None:
    setup = ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg", encoding="utf-8")
    found = {path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py")}
    assert setup["options"]["packages"].split() == sorted(".".join(path.parts) for path in found)


def _closure(module: str, *, lazy: bool) -> set[str]:
    """Return a module and all modules of qsysd that it imports, those that it imports lazily too if asked."""
    todo, seen = [module], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += [
            target for found, target in own_imports(name) if not found.types_only and (lazy or not found.lazy)
        ]
    return seen


def test_the_helper_is_installed_with_all_that_it_imports() -> None:
    installed = {name.removesuffix("/__init__").replace("/", ".") for name in helper_install.HELPER_MODULES}
    assert _closure("runtime.helper", lazy=True) | {"__init__", "runtime"} == installed


def test_the_helper_stays_on_the_lowest_floors() -> None:
    for module in _closure("runtime.helper", lazy=True) - {"__init__"}:
        assert FLOOR_OF[package(module)] <= 2, module


def test_no_step_of_a_unit_imports_something_slow_before_it_needs_it() -> None:
    for module in _closure("runtime.helper", lazy=True):
        for found in imports(TREES[module]):
            is_slow = found.target.split(".")[0] in SLOW
            assert found.lazy or found.types_only or not is_slow, f"{module} imports {found.target}"


def test_the_helper_loads_no_other_verb_than_the_one_it_runs() -> None:
    loaded = {"__init__", "errors", "paths", "runtime", "runtime.helper", "runtime.unit"}
    assert _closure("runtime.helper", lazy=False) <= loaded


def test_type_checking_is_one_constant_in_the_code_of_units() -> None:
    for module in _closure("runtime.helper", lazy=True) - {"runtime"}:
        names = [
            node.id
            for node in ast.walk(TREES[module])
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        assert "TYPE_CHECKING" not in names, module


def test_the_helper_needs_the_standard_library_only() -> None:
    for module in _closure("runtime.helper", lazy=True):
        for found in imports(TREES[module]):
            library = found.target.split(".")[0]
            # One is in Python up to 3.11, the other from 3.12.
            known = sys.stdlib_module_names | {"_sha2", "_sha256"}
            assert library == "qsysd" or library in known, f"{module}: {library}"


def _public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield public classes, functions and methods, without those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            yield f"{prefix}{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from _public(child, f"{child.name}.")


@pytest.mark.parametrize("module", SOURCES)
def test_public_classes_and_functions_have_docstrings(module: str) -> None:
    tree = TREES[module]
    assert ast.get_docstring(tree), f"{module} has no docstring"
    for name, node in _public(tree):
        assert isinstance(node, ast.ClassDef | ast.FunctionDef)
        assert ast.get_docstring(node), f"{module}.{name} has no docstring"

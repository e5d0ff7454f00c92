"""The documents: what they list is what the program has, so that they cannot drift."""

from __future__ import annotations

import re
from pathlib import Path

import key_lists
import pytest

from qsysd.cli.main import VERBS
from qsysd.model.defaults import Defaults
from qsysd.model.field import Change, declarations, keys
from qsysd.model.network import NetworkSpec
from qsysd.model.vm import VMSpec

ROOT = Path(__file__).parents[2]
PAGES = ("qsysd.8", "qsysd.yaml.5", "qemu-vm@.service.7")


def page(name: str) -> str:
    """Return a manual page, without what only its formatting needs."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8").replace("\\-", "-").replace(' ", " ', " ")


def section(text: str, title: str) -> str:
    """Return a section of a manual page."""
    return text.partition(f"\n.SH {title}\n")[2].partition("\n.SH ")[0]


def terms(text: str) -> set[str]:
    """Return the words of the lines that begin an item of a list."""
    lines = re.findall(r"^\.TP\n\.[BI]R? (.*)$", text, re.MULTILINE)
    return {word for line in lines for word in re.findall(r"[A-Za-z_]+", line)}


def test_the_lists_of_keys_are_those_of_the_models() -> None:
    for path, text in key_lists.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run: make docs"


def test_each_key_of_a_definition_is_in_the_manual_page() -> None:
    manual = page("qsysd.yaml.5")
    assert terms(section(manual, "VMS")) == set(keys(VMSpec))


def test_what_cannot_be_changed_is_in_the_manual_page() -> None:
    never = [declared.key for declared in declarations(VMSpec).values() if declared.change is Change.NEVER]
    listed = section(page("qsysd.yaml.5"), "VMS").split("\ncannot be changed")[0].rpartition("\n")[2]
    assert [word for word in re.findall("[a-z_]{3,}", listed) if word != "and"] == never


def test_each_key_of_networks_and_defaults_is_in_the_manual_page() -> None:
    manual = page("qsysd.yaml.5")
    assert terms(section(manual, "NETWORKS")) == set(keys(NetworkSpec))
    listed = re.findall(r"^\.BR ([a-z_]+) [,.]$", section(manual, "DEFAULTS"), re.MULTILINE)
    assert tuple(listed) == keys(Defaults)


def test_each_variable_of_the_environment_file_is_in_the_units_manual_page() -> None:
    template = (ROOT / "templates/vm.env.j2").read_text(encoding="utf-8")
    variables = set(re.findall("^([A-Z_]+)=", template, re.MULTILINE))
    assert terms(section(page("qemu-vm@.service.7"), "ENVIRONMENT")) == variables


@pytest.mark.parametrize("name", PAGES)
def test_manual_pages_refer_to_each_other_and_are_packaged(name: str) -> None:
    others = {other.replace("\\", "").rpartition(".")[0] for other in PAGES if other != name}
    see_also = section(page(name), "SEE ALSO")
    assert {other for other in others if f"{other} (" in see_also} == others
    assert f"docs/{name}\n" in (ROOT / "debian/qsysd.manpages").read_text(encoding="utf-8")


def test_units_name_a_manual_page_of_ours() -> None:
    for unit in [*(ROOT / "units").iterdir(), ROOT / "templates/qemu-vm@.service.j2"]:
        found = re.search("^Documentation=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
        assert found, unit
        assert found[1].startswith(("man:qsysd(8)", "man:qemu-vm@.service(7)")), unit


def test_readme_names_what_building_installs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    needs = re.search(
        r"^BUILD_NEEDS := (.*?[^\\])$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M | re.S
    )
    assert needs
    for package in needs[1].replace("\\", "").split():
        assert f"`{package}`" in readme
    # the two commands of a clone, then the installation: from the package first, then how it is built
    places = ["make demo", "make test", "## Installation", "apt install ./qsysd_", "make install"]
    assert sorted(places, key=readme.index) == places


def test_each_promise_of_the_threat_model_names_a_test_that_exists() -> None:
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    promises = [row for row in rows if set(row) > set("| -")]
    assert promises
    for row in promises:
        named = re.search(r"\| `(\w+/test_\w+\.py)::(test_\w+)` \|", row)
        assert named, row
        source = ROOT / "tests" / named[1]
        assert source.is_file() and f"def {named[2]}(" in source.read_text(encoding="utf-8"), row


def test_each_verb_is_in_the_manual_page() -> None:
    verbs = section(page("qsysd.8"), "VERBS")
    assert [verb for verb in VERBS if not re.search(rf"\b{verb}\b", verbs)] == []


# Phrases that systemd's and QEMU's manuals do not use, for texts about programs.
PHRASES = re.compile(
    r"\b(hears?|bears?|hinders?|shall|says|tells|knows|stands? (in|here)|at one blow|"
    r"(of|under) (its|their|his|your) own|sees? to|comes? to an end|a (file|line|item|process) an?)\b|"
    r"\b(is|are|was|were|be) (not )?there\b|"
    r"(?<!here )\b(is|are|was) no (?!longer\b)[a-z]+",
    re.IGNORECASE,
)
TEXTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile")),
    *(path for folder in ("docs", "templates", "units", "examples") for path in (ROOT / folder).iterdir()),
    *(path for path in (ROOT / "qsysd").rglob("*.py")),
]
# The digest of a VM's rendering covers comments: another text would make each running VM wait for a restart.
DIGESTED = ("vm.conf.j2", "vm.env.j2")
# These show old phrases as examples.
EXAMPLES = re.compile("^      # before: .*|^- \\*\\*English\\*\\*.*(\n  .*)*", re.MULTILINE)


@pytest.mark.parametrize(
    "path",
    [path for path in TEXTS if path.name not in DIGESTED],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_texts_are_written_as_the_manuals_are(path: Path) -> None:
    text = EXAMPLES.sub("", path.read_text(encoding="utf-8"))
    assert [found[0] for found in PHRASES.finditer(text)] == []

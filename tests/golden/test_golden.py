"""Definitions, and everything that is rendered from them, compared with files to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsysd import render, seed
from qsysd.config import dump, load
from qsysd.model.vm import VMSpec
from qsysd.paths import Scope
from qsysd.qemu import argv

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.yaml"))
NETWORKS = sorted((HERE / "networks").glob("*.yaml"))
EXAMPLES = sorted((HERE.parents[1] / "examples").glob("*.yaml"))
SCOPE = Scope()
HELPER = ["/usr/bin/python3", "-I", "-S", "-E", "/var/lib/qsysd/helper/current/qsysd-helper"]


def spec_of(case: Path) -> VMSpec:
    """Return the spec of a case's definition."""
    return load.parse_vm(case.read_text(), case.name, name=None)


def compare(directory: str, files: dict[str, str], regenerate: bool) -> None:
    """Compare texts with the expected files of a directory, or write the files."""
    expected = HERE / "expected" / directory
    if regenerate:
        expected.mkdir(parents=True, exist_ok=True)
        for old in expected.iterdir():
            old.unlink()
        for name, text in files.items():
            (expected / name).write_text(text)
    assert {path.name for path in expected.iterdir()} == set(files)
    for name, text in files.items():
        assert text == (expected / name).read_text(), f"{directory}/{name} (if intended: --regenerate)"


@pytest.fixture
def regenerate(request: pytest.FixtureRequest) -> bool:
    """Return whether expected files are written instead of compared."""
    return bool(request.config.getoption("--regenerate"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_vm(case: Path, regenerate: bool) -> None:
    spec = spec_of(case)
    rendered = render.vm(spec, SCOPE)
    files = {
        "definition.yaml": dump.dump_vm(spec),
        "argv": "".join(f"{word}\n" for word in argv.build(spec, SCOPE)),
        "environment": rendered.environment,
        "drop-in.conf": rendered.drop_in,
    }
    if spec.seed:
        files |= seed.documents(spec)
    compare(case.stem, files, regenerate)
    assert rendered.digest in rendered.environment


@pytest.mark.parametrize(
    ("case", "digest"),
    [
        ("auto", "7a3d459b8f05fb7e"),
        ("full", "e983a1ba278a98dc"),
        ("least", "fb7945fbd6203cdc"),
        ("quoting", "23198e4fbd320a50"),
    ],
)
def test_an_upgrade_from_unnamed_devices_makes_no_vm_wait_for_a_restart(case: str, digest: str) -> None:
    # The digests of the last version before named devices. Do not change them: see docs/contributing.md.
    assert render.vm(spec_of(HERE / f"cases/{case}.yaml"), SCOPE).digest == digest


@pytest.mark.parametrize("version", [252, 257])
def test_unit(version: int, regenerate: bool) -> None:
    text = render.unit(
        SCOPE,
        systemd_version=version,
        helper=HELPER,
        after_stop="/var/lib/qsysd/helper/current/after-stop",
        qemu="/usr/bin/qemu-system-x86_64",
    )
    compare(f"unit-{version}", {"qemu-vm@.service": text}, regenerate)
    assert ("RestartSteps=" in text) == (version >= 254)


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.stem)
def test_network(case: Path, regenerate: bool) -> None:
    spec = load.parse_network(case.read_text(), case.name)
    files = {Path(path).name: text for path, text in render.network_files(spec, SCOPE).items()}
    compare(case.stem, files | {f"{spec.name}.yaml": dump.dump_network(spec)}, regenerate)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_examples_are_valid(example: Path) -> None:
    spec = spec_of(example)
    assert spec.image or spec.kernel


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_a_dumped_definition_gives_the_same_spec(case: Path) -> None:
    spec = spec_of(case)
    assert load.parse_vm(dump.dump_vm(spec), case.name) == spec


def test_each_expected_directory_belongs_to_a_case() -> None:
    directories = {case.stem for case in (*CASES, *NETWORKS)} | {"unit-252", "unit-257"}
    assert {path.name for path in (HERE / "expected").iterdir()} == directories

"""Each field of the models is in a golden case with another value than its default, and has an effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from qsysd import render, seed
from qsysd.config import load
from qsysd.model.field import declarations, parts
from qsysd.model.network import NetworkKind, NetworkSpec
from qsysd.model.vm import VMSpec
from qsysd.paths import Scope

HERE = Path(__file__).parent
SPECS: list[Any] = [
    *(load.parse_vm(case.read_text(), case.name) for case in sorted((HERE / "cases").glob("*.yaml"))),
    *(load.parse_network(case.read_text(), case.name) for case in sorted((HERE / "networks").glob("*.yaml"))),
]
FIELDS = [
    f"{model.__name__}.{name}"
    for whole in (VMSpec, NetworkSpec)
    for model in (whole, *parts(whole))
    for name in declarations(model)
]
# A value for fields that have no default.
OTHER = {"NetworkSpec.subnet": "10.99.0.0/24"}
# An enum of one value cannot have another.
ONE_VALUE = {"NetworkSpec.kind"} if len(NetworkKind) == 1 else set()
NOT_RENDERED = {
    "Disk.size": "create makes the disk with it, and QEMU reads it from there",
    "VMSpec.user": "qsysd ssh reads it from the definition",
}


def without(spec: Any) -> Iterator[tuple[str, Any]]:
    """Yield each field of a spec and its parts that is not at its default, and the spec with it changed."""
    for name, declared in declarations(type(spec)).items():
        value, field = getattr(spec, name), f"{type(spec).__name__}.{name}"
        if declared.default is not MISSING and value != declared.default:
            yield field, replace(spec, **{name: declared.default})
        elif declared.default is MISSING:
            empty: Any = () if isinstance(value, tuple) else not value if isinstance(value, bool) else "other"
            yield field, replace(spec, **{name: OTHER.get(field, empty)})
        if is_dataclass(value):
            yield from ((below, replace(spec, **{name: other})) for below, other in without(value))
        for index, item in enumerate(value if isinstance(value, tuple) else ()):
            for below, other in without(item) if is_dataclass(item) else ():
                items = (*value[:index], other, *value[index + 1 :])
                yield below, replace(spec, **{name: items})


def rendered(spec: Any) -> object:
    """Return all that is rendered from a spec, without the digest of the definition itself."""
    if isinstance(spec, NetworkSpec):
        return render.network_files(spec, Scope())
    whole = render.vm(spec, Scope(), definition="")
    return whole, seed.documents(spec) if spec.seed else {}


@pytest.fixture(scope="module")
def changed() -> list[tuple[str, Any, Any]]:
    """Return the fields that the cases exercise, each with a spec and that spec without the field's value."""
    return [(field, spec, other) for spec in SPECS for field, other in without(spec)]


@pytest.mark.parametrize("name", sorted({*FIELDS} - ONE_VALUE))
def test_a_field_is_in_a_golden_case(name: str, changed: list[tuple[str, Any, Any]]) -> None:
    assert name in {field for field, _, _ in changed}, "use it in a file of tests/golden/cases"


@pytest.mark.parametrize("name", sorted({*FIELDS} - ONE_VALUE - {*NOT_RENDERED}))
def test_a_field_shows_in_what_is_rendered(name: str, changed: list[tuple[str, Any, Any]]) -> None:
    assert any(rendered(spec) != rendered(other) for field, spec, other in changed if field == name)


@pytest.mark.parametrize("name", NOT_RENDERED)
def test_a_field_that_is_listed_as_not_rendered_is_not(
    name: str, changed: list[tuple[str, Any, Any]]
) -> None:
    assert name in FIELDS
    assert all(rendered(spec) == rendered(other) for field, spec, other in changed if field == name)

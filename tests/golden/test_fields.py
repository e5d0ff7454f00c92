"""Each field of the models is in a golden case, with a value that shows in what is rendered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qsysd.config import load
from qsysd.model.field import declarations, parts
from qsysd.model.network import NetworkKind, NetworkSpec
from qsysd.model.vm import VMSpec

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.yaml"))
NETWORKS = sorted((HERE / "networks").glob("*.yaml"))

# An enum of one value cannot have another than its default.
ONE_VALUE = {"NetworkSpec.kind"} if len(NetworkKind) == 1 else set()

FIELDS = [
    f"{model.__name__}.{name}"
    for whole in (VMSpec, NetworkSpec)
    for model in (whole, *parts(whole))
    for name in declarations(model)
]


def given(spec: Any) -> Iterator[str]:
    """Yield the fields of a spec and of its parts that have another value than the built-in default."""
    for name, declared in declarations(type(spec)).items():
        value = getattr(spec, name)
        if value != declared.default:
            yield f"{type(spec).__name__}.{name}"
        for part in value if isinstance(value, tuple) else [value]:
            if dataclasses.is_dataclass(part):
                yield from given(part)


@pytest.fixture(scope="module")
def exercised() -> set[str]:
    """Return the fields that the cases exercise."""
    vms = (load.parse_vm(case.read_text(), case.name) for case in CASES)
    networks = (load.parse_network(case.read_text(), case.name) for case in NETWORKS)
    return {name for spec in (*vms, *networks) for name in given(spec)}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_in_a_golden_case_with_another_value_than_its_default(
    name: str, exercised: set[str]
) -> None:
    assert name in exercised | ONE_VALUE, "add it to a file of tests/golden/cases"

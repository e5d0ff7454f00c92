"""Errors: their exit statuses, and their conversion to plain values and back."""

from __future__ import annotations

import json
import re

import pytest

from qsysd import errors
from qsysd.errors import KINDS, HostError, QsysdError, StateError, TimeoutExpired
from qsysd.images.formats import BrokenImageError
from qsysd.runtime.qmp import MonitorBusy


def test_exit_statuses_are_as_documented() -> None:
    assert {name: kind.code for name, kind in KINDS.items()} == {
        "QsysdError": 1,
        "InvalidError": 2,
        "NotFoundError": 3,
        "ExistsError": 4,
        "StateError": 5,
        "TimeoutExpired": 6,
        "HostError": 7,
    }
    documented = re.findall(r"(\w+) +(\d)  ", errors.__doc__ or "")
    assert [(name, str(kind.code)) for name, kind in KINDS.items()] == documented


def test_every_kind_of_error_is_converted() -> None:
    kinds = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QsysdError)
    }
    assert set(KINDS.values()) == kinds


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("hint", [None, "", "try qsysd doctor"])
def test_an_error_is_converted_to_plain_values_and_back(kind: type[QsysdError], hint: str | None) -> None:
    error = kind("it failed: é\n2nd line", hint=hint)
    again = QsysdError.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(again) is kind
    assert (again.message, again.hint, again.code) == (error.message, error.hint, error.code)
    assert str(again) == error.message


def test_a_separate_exit_status_is_kept() -> None:
    error = HostError("x", code=1)
    assert (error.code, HostError.code) == (1, 7)
    assert QsysdError.from_dict(error.to_dict()).code == 1


def test_an_error_of_an_unknown_kind_is_an_error() -> None:
    again = QsysdError.from_dict({"kind": "FutureError", "message": "no", "hint": None, "code": 9})
    assert type(again) is QsysdError
    assert (again.message, again.code) == ("no", 9)
    assert QsysdError.from_dict({}).message == "unknown error"
    assert QsysdError.from_dict({"kind": "TimeoutExpired", "message": "x"}).code == TimeoutExpired.code


def test_a_kind_of_one_module_becomes_its_nearest_general_kind() -> None:
    again = QsysdError.from_dict(BrokenImageError("it is truncated").to_dict())
    assert type(again) is StateError
    again = QsysdError.from_dict(MonitorBusy("another client").to_dict())
    assert type(again) is QsysdError

"""Outcomes of verbs, as the command line shows them."""

from __future__ import annotations

import pytest

from qsysd.cli import outcomes
from qsysd.host.outcomes import Outcome, State


def test_every_state_has_a_text() -> None:
    assert {*outcomes.STATE_TEXTS, State.FAILED} == set(State)


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome("web1", State.ALREADY_RUNNING, "active", "active"), "web1: already running"),
        (Outcome("db", State.STARTED, needed_by="web1"), "db: started (web1 depends on it)"),
    ],
)
def test_an_outcome_is_shown_as_text(outcome: Outcome, text: str) -> None:
    assert outcomes.outcome_text(outcome) == text

"""Which answers of an engine count as the same."""

from __future__ import annotations

import math

import pytest

from actors.rollout.sleep_probe import Answer, different

BEFORE = Answer([5, 6, 7], [-0.1, -2.0, -1.0])


@pytest.mark.parametrize(
    ("after", "same"),
    [
        (BEFORE, True),
        (Answer([5, 6, 7], [-0.15, -2.05, -0.95]), True),
        (Answer([5, 8, 9], [-0.1, -2.01, -7.0]), True),  # two tokens as likely as each other; what follows is about another text
        (Answer([4, 6, 7], [-0.1, -2.0, -1.0]), False),
        (Answer([5, 6, 7], [-0.1, -2.0, -1.2]), False),
        (Answer([5, 8, 7], [-0.1, -3.0, -1.0]), False),
        (Answer([5, 6, 7], [-0.1, math.nan, -1.0]), False),
    ],
)
def test_rounding_is_not_a_difference(after: Answer, same: bool) -> None:
    assert (different(BEFORE, after) == "") is same

"""Ground truth as a sentence."""

import pytest

from rlsys.reporting.ground_truth import describe_ground_truth


@pytest.mark.parametrize(
    ("ground_truth", "order", "words"),
    [
        ([1.0, 0.0], [0, 1], "[1] is the best response"),
        ([1.0, 0.0], [1, 0], "[2] is the best response"),
        ([0.1, 0.9, 0.5, 0.2], [3, 2, 0, 1], "[4] is the best response"),
        ([0.0], [0], "the response is wrong"),  # whatever the range of its score
        ([1.0], [0], "the response is right"),
    ],
)
def test_best_response_is_named_by_its_displayed_position(ground_truth, order, words):
    assert describe_ground_truth(ground_truth, order) == words

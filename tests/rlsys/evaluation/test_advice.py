"""A run that goes nowhere says why and what to do."""

from rlsys.documents.runs import Stage
from rlsys.evaluation.advice import advise_at_end, advise_if_nothing_parsed, advise_on_equal_rewards, describe_failures


def result(accuracy=0.0, failed=10, samples=10, cut_off=0):
    return Stage(
        n=samples,
        samples=samples,
        reward=2 * accuracy - 1,
        reward_ci95=None,
        accuracy=accuracy,
        accuracy_ci95=None,
        parse_failures={"no_box": failed},
        cut_off=cut_off,
        families={},
    )


def test_a_base_that_parses_nothing_needs_a_teacher():
    assert "sft.rows" in advise_if_nothing_parsed(result(), taught=False)
    assert "rollout.max_tokens" in advise_if_nothing_parsed(result(cut_off=9), taught=False)
    assert "rollout.max_tokens" not in advise_if_nothing_parsed(result(cut_off=1), taught=False)
    assert advise_if_nothing_parsed(result(), taught=True) is None
    assert advise_if_nothing_parsed(result(failed=9), taught=False) is None


def test_equal_rewards_have_one_of_three_causes():
    assert "sft.rows" in advise_on_equal_rewards(-1.0, 8, 8, 0)
    assert "rollout.max_tokens" in advise_on_equal_rewards(-1.0, 8, 8, 8)
    assert "too easy" in advise_on_equal_rewards(1.0, 0, 8, 0)
    assert "too hard" in advise_on_equal_rewards(-1.0, 2, 8, 0)


def test_a_run_that_ends_at_the_bottom_says_so():
    assert "no verdict" in advise_at_end(result())
    assert "right way round" in advise_at_end(result(failed=2))
    assert advise_at_end(result(accuracy=0.1)) is None


def test_parse_failures_say_how_many_were_cut_off():
    assert describe_failures({"no_box": 2, "unfinished_thought": 1}, 8, 2, 128) == "3 of 8 not parsed, 2 of them cut off at 128 tokens"
    assert describe_failures({}, 8, 0) == "0 of 8 not parsed"

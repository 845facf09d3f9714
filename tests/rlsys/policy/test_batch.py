"""A policy's rewards: what is trained on, what is only measured, and what is left out."""

import math

import pytest
from policy_groups import judged

from rlsys.config.policy import Judge, Policy, RewardTerm
from rlsys.data.chain import Sample
from rlsys.data.records import Record
from rlsys.judging.voting import find_strategy
from rlsys.policy.batch import MeasuredGroup, Rewarder, agreements, describe_judging, judgement_rows
from rlsys.policy.groups import SampledGroup
from rlsys.policy.rewards import find_function

CHECKS = ({"rule": "max_words", "count": 2},)


def record(number, checks=CHECKS, source="s"):
    return Record(f"r{number}", source, ({"role": "user", "content": "Q?"},), (), (), checks=checks, labelled=False)


def samples(group, *texts, cut=()):
    return [Sample(group, i, [1] * len(text.split()), [-1.0], text, "length" if i in cut else "stop", 0) for i, text in enumerate(texts)]


TEXTS = ("a b c", "a b", "a", "a b c d")


def group(number=0, scores=None, **more):
    """A group of `TEXTS`; scores: of one judgement by text, or None if it did not parse."""
    return judged(record(number), samples(number, *TEXTS), [scores], Judge(k=1), **more)


SCORES = dict(zip(TEXTS, (9, 3, 5, 5)))


def rewarder(**policy):
    return Rewarder(Policy(**policy), Judge(k=1), find_strategy("vote"))


def rewards(table):
    return table["reward"].to_pylist()


def test_the_judge_is_trained_on_and_the_checks_are_only_measured():
    table, figures = rewarder().train([group(scores=SCORES)])
    assert rewards(table) == table["judge_score"].to_pylist() == [9, 3, 5, 5]
    assert table["gold"].to_pylist() == [False, True, True, False] and table["bt"].null_count == 4
    assert figures["means"]["gold"] == (2, 4) and figures["means"]["judge_score"] == (22, 4) and figures["means"]["bt"] == (0, 0)
    # (a b, a) against (a b c, a b c d): 3 < 9, 3 < 5, 5 < 9, 5 = 5
    assert figures["means"]["judge_agreement"] == (0.5, 4)
    assert (figures["judgements"], figures["judgements_failed"], figures["judge_tokens"]) == (1, 0, 5)


def test_gold_or_the_bradley_terry_model_may_be_trained_on_instead():
    measured = group(scores=SCORES, bt=[0.5, -1.0, 2.0, 0.0])
    assert rewards(rewarder(reward="gold").train([measured])[0]) == [0, 1, 1, 0]
    assert rewards(rewarder(reward="bt", bt="m").train([measured])[0]) == [0.5, -1, 2, 0]


def test_a_group_without_a_judgement_is_left_out_and_counted():
    table, figures = rewarder().train([group(0), group(1, SCORES)])
    assert rewards(table) == [None] * 4 + [9, 3, 5, 5] and table["gold"].null_count == 0
    assert (figures["groups_unjudged"], figures["groups_identical"], figures["judgements_failed"]) == (1, 0, 1)
    assert figures["means"]["judge_score"] == (22, 4)
    assert describe_judging(figures) == "1 of 2 judgements not parsed, 1 groups without a judgement"


def test_a_group_of_equal_texts_is_counted_apart():
    equal = judged(record(0), samples(0, "a", "a"), [], Judge(k=1))
    table, figures = rewarder().train([equal])
    assert rewards(table) == [None, None] and (figures["groups_unjudged"], figures["groups_identical"]) == (0, 1)


def test_rows_without_checks_are_judged_but_not_paid_by_checks():
    bare = judged(record(0, ()), samples(0, *TEXTS), [SCORES], Judge(k=1))
    table, figures = rewarder().train([bare])
    assert rewards(table) == [9, 3, 5, 5] and table["gold"].null_count == 4 and figures["means"]["gold"] == (0, 0)
    assert rewards(rewarder(reward="gold").train([bare])[0]) == [None] * 4


def test_a_text_that_was_cut_off_does_not_pass():
    cut = MeasuredGroup(record(0), samples(0, "a", "a b", cut=(1,)))
    table, figures = rewarder(reward="gold").train([cut])
    assert rewards(table) == [1, 0] and "judgements" not in figures


def test_further_rewards_are_added_with_their_weights_by_source():
    terms = (
        RewardTerm(function="tokens", weight=-0.5),
        RewardTerm(function="words", weight=10, sources=("other",)),
        RewardTerm(function="policy_groups:letters", weight=1, sources=("mix",)),
    )
    plain = MeasuredGroup(record(0), samples(0, "a b c", "a"))
    mixed = MeasuredGroup(record(1, source="mix/s"), samples(1, "a b c", "a"))
    table, _ = rewarder(reward="gold", weight=2.0, rewards=terms).train([plain, mixed])
    assert rewards(table) == [-1.5, 2 - 0.5, -1.5 + 3, 2 - 0.5 + 1]


@pytest.mark.parametrize("name", ["nothing", "no_such_module:f", "math:no_such_function", "math:pi", "math.x:y"])
def test_functions_that_do_not_exist(name):
    with pytest.raises(ValueError, match="policy.rewards: .*" + name.partition(":")[0]):
        find_function(name)


def test_a_function_has_to_return_a_finite_number():
    bad = rewarder(reward="gold", rewards=(RewardTerm(function="policy_groups:not_a_number", weight=1),))
    with pytest.raises(ValueError, match="not_a_number returned nan for row r0"):
        bad.train([MeasuredGroup(record(0), samples(0, "a", "b"))])
    assert math.isnan(find_function("policy_groups:not_a_number")(record(0), None))


def test_heldout_samples_are_worth_plus_or_minus_one_by_their_checks():
    table, figures = rewarder().evaluate([MeasuredGroup(record(0), samples(0, *TEXTS), [1.0, 2.0, 3.0, 4.0])])
    assert rewards(table) == [-1, 1, 1, -1] and table["bt"].to_pylist() == [1, 2, 3, 4]
    assert figures["means"]["gold"] == (2, 4)


def test_agreements_by_hand():
    assert agreements([9, 3, None, 5], [True, False, False, None]) == [1.0]
    assert agreements([1, 1, 2], [True, False, False]) == [0.5, 0.0]
    assert agreements([1, 2], [True, True]) == []


def test_judgements_are_kept_with_query_and_responses():
    (row,) = judgement_rows([group(3, SCORES)])
    assert row["group"] == 3 and row["query"] == "Q?" and sorted(row["responses"]) == sorted(TEXTS)
    assert len(row["samples"]) == 1 and row["samples"][0]["scores"] is not None
    assert isinstance(group(3, SCORES).sampled, SampledGroup)

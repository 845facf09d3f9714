"""Tables of samples: parsing, errors, and independence of the layout of rows."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.data.readers import DataError
from rlsys.judging import voting
from rlsys.judging.voting import STRATEGIES, Options, SampleTable, decide, table
from rlsys.rewards.rules import unshuffle

SAMPLE = {"id": "a", "order": [1, 0], "scores": [3, 8]}


def filled(rows: list[dict], needs: tuple[str, ...] = ()) -> SampleTable:
    result = SampleTable(needs)
    for row in rows:
        result.add(row)
    return result


def verdicts(rows: list[dict], name: str = "vote", **keywords) -> list[dict]:
    return list(decide(filled(rows, STRATEGIES[name].needs), STRATEGIES[name], keywords.pop("options", Options()), **keywords))


@st.composite
def ids_of_samples(draw) -> list[list[dict]]:
    """Generate the samples of each id, of 1 to 3 responses, in different orders."""
    everything = []
    for number in range(draw(st.integers(1, 4))):
        n = draw(st.integers(1, 3))
        scores = st.lists(st.integers(1, 10), min_size=n, max_size=n)
        sample = st.fixed_dictionaries({"order": st.permutations(range(n)), "scores": scores | st.none()})
        everything.append([{"id": f"id {number}"} | one for one in draw(st.lists(sample, min_size=1, max_size=4))])
    return everything


def slow_vote(samples: list[dict]) -> list[int] | None:
    own = [unshuffle(sample["scores"], sample["order"]) for sample in samples if sample["scores"] is not None]
    return [sum(column) for column in zip(*own)] if own else None


@given(ids_of_samples())
def test_totals_are_in_the_records_own_order(everything: list[list[dict]]) -> None:
    found = verdicts([sample for samples in everything for sample in samples])
    assert [row["totals"] for row in found] == [slow_vote(samples) for samples in everything]
    assert [row["samples"] for row in found] == [len(samples) for samples in everything]
    assert [row["parsed"] for row in found] == [sum(sample["scores"] is not None for sample in samples) for samples in everything]


@given(ids_of_samples(), st.data())
def test_shuffling_orders_and_scores_together_changes_nothing(everything: list[list[dict]], data: st.DataObject) -> None:
    rows, shuffled = [sample for samples in everything for sample in samples], []
    for row in rows:
        places = data.draw(st.permutations(range(len(row["order"]))))
        scores = row["scores"] and [row["scores"][place] for place in places]
        shuffled.append(row | {"order": [row["order"][place] for place in places], "scores": scores})
    assert verdicts(shuffled) == verdicts(rows)


@given(ids_of_samples(), st.randoms(use_true_random=False))
def test_the_layout_of_rows_does_not_matter(everything: list[list[dict]], random) -> None:
    rows = [sample for samples in everything for sample in samples]
    folded = [{"id": samples[0]["id"], "samples": samples} for samples in everything]
    expected = {row["id"]: row for row in verdicts(rows)}
    assert verdicts(folded) == list(expected.values())
    random.shuffle(rows)
    mixed = verdicts(rows)
    assert {row["id"]: row for row in mixed} == expected
    assert [row["id"] for row in mixed] == list(dict.fromkeys(row["id"] for row in rows))  # in the order of first appearance


@given(everything=ids_of_samples())
def test_the_portion_size_does_not_matter(everything: list[list[dict]]) -> None:
    rows = [sample for samples in everything for sample in samples]
    whole = verdicts(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "CELLS", 1)
        assert verdicts(rows) == whole


def test_the_first_k_samples_count() -> None:
    rows = [
        SAMPLE | {"scores": [1, 2]},
        SAMPLE | {"id": "b"},
        SAMPLE | {"scores": [4, 8]},
        SAMPLE | {"id": "b"},
        SAMPLE | {"scores": [9, 9]},
    ]
    assert [row["totals"] for row in verdicts(rows, k=2)] == [[10, 5], [16, 6]]
    with pytest.raises(DataError, match=r"id 'b': 2 samples, fewer than k = 3; lower k"):
        verdicts(rows, k=3)


def test_the_first_k_of_many_mixed_samples() -> None:
    rows = [{"id": name, "order": [0], "scores": [number]} for number in range(1, 101) for name in ("a", "b", "c")]
    assert [row["totals"] for row in verdicts(rows, k=3)] == [[1 + 2 + 3]] * 3


def test_all_fields_of_a_verdict() -> None:
    rows = [SAMPLE | {"tokens": 30}, SAMPLE | {"scores": None, "failure": "no_box", "tokens": 12}]
    expected = {"id": "a", "totals": [8.0, 3.0], "best": 0, "tied": False, "abstained": False, "samples": 2, "parsed": 1, "tokens": 42}
    assert verdicts(rows) == [expected]


def test_nothing_parsed_is_no_verdict() -> None:
    (row,) = verdicts([SAMPLE | {"scores": None}])
    assert (row["totals"], row["best"], row["tied"], row["abstained"]) == (None, None, False, False)


def test_only_used_samples_are_counted() -> None:
    rows = [SAMPLE | {"tokens": 10}] * 20
    (row,) = verdicts(rows, "adaptive", options=Options(round_size=1))
    assert (row["samples"], row["parsed"], row["tokens"], row["best"]) == (6, 6, 60, 0)


def test_abstaining_is_no_verdict_but_has_totals() -> None:
    (row,) = verdicts([SAMPLE | {"scores": [5, 5]}], "abstain")
    assert (row["totals"], row["best"], row["tied"], row["abstained"]) == ([5.0, 5.0], None, True, True)


def test_the_seed_breaks_ties() -> None:
    rows = [{"id": number, "order": [0, 1], "scores": [5, 5]} for number in range(100)]
    first, again, other = verdicts(rows, seed=0), verdicts(rows, seed=0), verdicts(rows, seed=1)
    assert first == again != other
    assert {row["best"] for row in first} == {0, 1}
    assert verdicts(rows[50:], seed=0) == first[50:]


def test_numbers_and_texts_are_different_ids() -> None:
    assert [row["id"] for row in verdicts([SAMPLE | {"id": 1}, SAMPLE | {"id": "1"}])] == [1, "1"]


def test_a_parse_failure_needs_no_meta_reward() -> None:
    rows = [SAMPLE | {"meta_reward": 0.5}, SAMPLE | {"scores": None}, SAMPLE | {"scores": None, "meta_reward": None}]
    assert verdicts(rows, "meta")[0]["totals"] == [8.0, 3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "id: expected text or an integer, found nothing; the row has id, meta_reward, order, scores"),
        ({"id": True}, "id: expected text or an integer, found boolean True"),
        ({"id": 1.5}, "id: expected text or an integer, found number 1.5"),
        ({"order": None}, "order: expected the index of the response at each place, found nothing"),
        ({"order": []}, "order: expected a non-empty list"),
        ({"order": [1, 1]}, r"order: expected each of 0 .. 1 once, .*found \[1, 1\]"),
        ({"order": [1, 2]}, "order: expected each of 0 .. 1 once"),
        ({"order": [True, False]}, "order: expected each of 0 .. 1 once"),
        ({"order": [0, "1"]}, "order: expected each of 0 .. 1 once"),
        ({"order": [0, 1, 2]}, "scores: expected a list of 3, one score per place of order, or null, found list of 2"),
        ({"scores": "8, 3"}, "scores: expected a list of 2"),
        ({"scores": [3, True]}, r"scores\[1\]: expected a finite number, found boolean True"),
        ({"scores": [3, None]}, r"scores\[1\]: expected a finite number, found null"),
        ({"scores": [math.nan, 3]}, r"scores\[0\]: expected a finite number, found number nan"),
        ({"scores": [3, 1e308]}, r"scores\[1\]: expected a number up to 1e\+100, found number 1e\+308"),
        ({"scores": [3, 10**400]}, r"scores\[1\]: expected a finite number, found number a huge integer"),
        ({"meta_reward": "high"}, "meta_reward: expected a finite number, found text 'high'"),
        ({"meta_reward": None}, "meta_reward: the strategy needs a number in every sample that parsed, found nothing"),
        ({"tokens": -1}, "tokens: expected an integer 0.."),
        ({"tokens": 1.5}, "tokens: expected an integer 0.."),
        ({"certainty": math.inf}, "certainty: expected a finite number"),
        ({"samples": []}, "samples: expected a non-empty list, found list of 0"),
        ({"samples": [SAMPLE | {"meta_reward": 1}, 7]}, r"samples\[1\]: expected an object, found number 7"),
        ({"samples": [SAMPLE | {"meta_reward": 1, "scores": [1]}]}, r"samples\[0\].scores: expected a list of 2"),
    ],
)
def test_errors_in_a_row(change: dict, message: str) -> None:
    row = json.loads(json.dumps(SAMPLE | {"meta_reward": 0.0} | change))  # as it comes out of a file, NaN included
    with pytest.raises(DataError, match=message):
        SampleTable(needs=("meta_reward",)).add(row)


def test_a_missing_key_is_not_null() -> None:
    with pytest.raises(DataError, match="scores: expected one number per response, or null .*found nothing"):
        SampleTable().add({"id": "a", "order": [0, 1]})


def test_all_samples_of_an_id_judge_the_same_number_of_responses() -> None:
    with pytest.raises(DataError, match="order: 3 responses, but earlier samples of id 'a' have 2"):
        filled([SAMPLE, SAMPLE | {"id": "b"}, {"id": "a", "order": [0, 1, 2], "scores": [1, 2, 3]}])


def test_every_field_reaches_its_strategy() -> None:
    """Each field reaches the strategy that asks for it: in each of them, the second sample outweighs the first."""
    rows = [
        SAMPLE | {"meta_reward": -4.0, "logprob": -80.0, "certainty": 1.0, "tokens": 10},
        SAMPLE | {"order": [0, 1], "meta_reward": 4.0, "logprob": -1.0, "certainty": 2.0, "tokens": 10},
    ]
    for name in ("meta", "meta_weighted", "rpc", "borda"):
        assert verdicts(rows, name)[0]["best"] == 1, name
    assert verdicts(rows, "majority")[0]["tied"]
    assert voting.find_strategy("majority").counts == "winners"


def whole(first: int, **more) -> dict:
    return {"id": "1", "samples": [{"order": [0, 1], "scores": [first, 10 - first]}]} | more


def test_records_with_the_same_id_are_distinguished_by_source() -> None:
    found = verdicts([whole(9, source="safety"), whole(1, source="code"), {"id": "1", "source": "chat", "order": [0, 1], "scores": [2, 3]}])
    assert [(row["source"], row["id"], row["best"]) for row in found] == [("safety", "1", 0), ("code", "1", 1), ("chat", "1", 1)]
    assert "source" not in verdicts([whole(9)])[0]


@pytest.mark.parametrize("again", [whole(1), {"id": "1", "order": [0, 1], "scores": [1, 9]}], ids=["whole", "single"])
@pytest.mark.parametrize("source", [{}, {"source": "safety"}], ids=["bare", "sourced"])
def test_two_indistinguishable_records_are_rejected(again: dict, source: dict) -> None:
    for rows in ([whole(9), again], [again, whole(9)]):
        with pytest.raises(DataError, match="cannot be distinguished"):
            filled([row | source for row in rows])

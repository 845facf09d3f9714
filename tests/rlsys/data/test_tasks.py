"""The generated tasks: well-formed, reproducible, disjoint splits, and only the content reveals the correct answer."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict

import pytest
from scipy.stats import chisquare

from rlsys.data.tasks import FAMILIES, generate


def query_of(record):
    return record.context[-1]["content"]


def length_wins(records):
    """Fraction of pairs whose correct answer is longer in characters (equal lengths count half), and how many lengths differ."""
    gaps = [len(record.responses[record.best]) - len(record.responses[1 - record.best]) for record in records]
    return sum((gap > 0) + (gap == 0) / 2 for gap in gaps) / len(gaps), sum(gap != 0 for gap in gaps)


# --- Shape ---


@pytest.mark.parametrize("level", [1, 3])
def test_records_are_well_formed(level):
    ids = set()
    for record in generate("train", 5000, 3, level=level):
        assert record.id not in ids and record.id.startswith("train-") and record.id.endswith(record.family)
        ids.add(record.id)
        assert record.source == "tasks" and [message["role"] for message in record.context] == ["user"]
        assert len(set(record.responses)) == record.n == len(record.rewards) == len(record.worked.notes) == len(record.worked.scores)
        assert record.rewards in ((0.0,), (1.0,)) if record.n == 1 else sorted(record.rewards) == [0.0] * (record.n - 1) + [1.0]
        # Short enough for a small model and a small machine; no response is empty.
        assert 2 <= len(query_of(record).split()) <= 24
        assert all(1 <= len(response.split()) <= 13 for response in record.responses)
        assert 2 <= len(record.worked.criteria.split()) <= 14 and all(3 <= len(note.split()) <= 25 for note in record.worked.notes)
        # Nothing that looks like the judge's own output, and no mention of positions.
        shown = " ".join((query_of(record), *record.responses, record.worked.criteria, *record.worked.notes))
        assert not re.search(r"\\|box|\{|\}|<|>|[Rr]esponse|Score|Analysis|\n", shown.replace("boxing", "").replace("box", "bag")), record


def test_worked_scores_are_correct_by_eq_10():
    for record in generate("train", 3000, 4, level=3):
        scores = record.worked.scores
        if record.n == 1:
            assert scores == (int(record.rewards[0]),)
        else:
            assert all(1 <= score <= 10 for score in scores)
            assert all(scores[record.best] > score for i, score in enumerate(scores) if i != record.best)


def test_families_cycle_and_every_number_of_responses_occurs():
    records = list(generate("train", 10 * len(FAMILIES), 5))
    assert set(Counter(record.family for record in records).values()) == {10}
    assert {record.n for record in records} == {1, 2, 4}
    assert {record.n for record in generate("train", 50, 5, responses=(3,))} == {3}
    assert {record.family for record in generate("train", 20, 5, families=("copy", "plural"))} == {"copy", "plural"}


# --- Determinism and splits ---


def test_a_record_depends_on_split_seed_and_index_only():
    whole = [(record, record.worked) for record in generate("train", 300, 7, level=2)]
    assert whole == [(record, record.worked) for record in generate("train", 300, 7, level=2)]
    assert whole[120:170] == [(record, record.worked) for record in generate("train", 50, 7, level=2, start=120)]
    assert [record.responses for record, _ in whole] != [record.responses for record in generate("train", 300, 8, level=2)]
    far = list(generate("train", 2, 7, start=10**9))
    assert far[0].id.startswith("train-1000000000-")


def test_train_and_heldout_share_no_question():
    train, heldout = defaultdict(set), defaultdict(set)
    for questions, split, seeds in ((train, "train", (1, 2)), (heldout, "heldout", (1, 9))):
        for seed, level in itertools.product(seeds, (1, 3)):
            for record in generate(split, 10_000, seed, level=level):
                questions[record.family].add(query_of(record))
    assert sum(map(len, heldout.values())) >= 2000
    for family in FAMILIES:
        assert not train[family] & heldout[family]


def test_every_family_has_hundreds_of_questions_at_level_1():
    seen = defaultdict(set)
    for split in ("train", "heldout"):
        for record in generate(split, 1000 * len(FAMILIES), 1, responses=(1,)):
            seen[record.family].add(query_of(record))
    assert min(len(questions) for questions in seen.values()) >= 200, {family: len(questions) for family, questions in seen.items()}


# --- Only the content is informative ---


@pytest.mark.parametrize("n", [2, 3, 4])
def test_position_of_the_best_is_uniform(n):
    places = Counter(record.best for record in generate("train", 12_000, 21, responses=(n,)))
    assert chisquare([places[place] for place in range(n)]).pvalue > 1e-3
    assert sum(places.values()) == 12_000 and len(places) == n


def test_single_responses_are_correct_half_the_time():
    labels = Counter(record.rewards[0] for record in generate("train", 8000, 22, responses=(1,)))
    assert chisquare([labels[0.0], labels[1.0]]).pvalue > 1e-3


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_longer_answer_wins_half_the_time(level):
    by_family = defaultdict(list)
    for split in ("train", "heldout"):
        for record in generate(split, 600 * len(FAMILIES), 23, level=level, responses=(2,)):
            by_family[record.family].append(record)
    overall, _ = length_wins(list(itertools.chain(*by_family.values())))
    assert 0.48 <= overall <= 0.52
    for family, records in by_family.items():
        share, unequal = length_wins(records)
        assert 0.43 <= share <= 0.57, (family, share)
        assert unequal < 100 or 0.4 <= 0.5 + (share - 0.5) * len(records) / unequal <= 0.6, (family, share, unequal)


def test_among_four_the_longest_and_the_shortest_win_a_quarter_of_the_time():
    longest = shortest = 0.0
    records = list(generate("train", 13_000, 24, responses=(4,)))
    for record in records:
        lengths = [len(response) for response in record.responses]
        longest += (lengths[record.best] == max(lengths)) / lengths.count(max(lengths))
        shortest += (lengths[record.best] == min(lengths)) / lengths.count(min(lengths))
    assert 0.2 <= longest / len(records) <= 0.3 and 0.2 <= shortest / len(records) <= 0.3


def test_correct_number_is_not_always_the_middle_one():
    ranks = Counter()
    for record in generate("train", 4000, 25, families=("addition", "sequence", "multiplication"), responses=(4,)):
        ranks[sorted(int(response) for response in record.responses).index(int(record.reference))] += 1
    assert all(0.15 <= ranks[rank] / 4000 <= 0.35 for rank in range(4)), ranks


def test_single_correct_answers_are_as_long_as_wrong_ones():
    lengths = defaultdict(lambda: ([], []))
    for record in generate("train", 400 * len(FAMILIES), 26, responses=(1,)):
        lengths[record.family][int(record.rewards[0])].append(len(record.responses[0]))
    for family, (wrong, right) in lengths.items():
        longer = sum((a > b) + (a == b) / 2 for a in right for b in wrong) / (len(right) * len(wrong))
        assert 0.4 <= longer <= 0.6, (family, longer)


# --- Errors ---


def test_invalid_arguments_are_rejected_immediately():
    with pytest.raises(ValueError, match="'additon'.*addition, subtraction"):
        generate("train", 1, 0, families=("additon",))
    with pytest.raises(ValueError, match="level 4: expected 1, 2 or 3"):
        generate("train", 1, 0, level=4)
    with pytest.raises(ValueError, match="split 'test': expected one of train, heldout"):
        generate("test", 1, 0)
    with pytest.raises(ValueError, match="each 1 to 4"):
        generate("train", 1, 0, responses=(2, 5))
    with pytest.raises(ValueError, match="each 1 to 4"):
        generate("train", 1, 0, responses=())
    with pytest.raises(ValueError, match="from 0 up"):
        generate("train", -1, 0)

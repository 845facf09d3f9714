"""Benchmarks in their own files, scored as published: every expected figure is worked out by hand beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rlsys.data.readers import DataError
from rlsys.evaluation.benchmarks import Benchmark, load, score

NO_VERDICT = math.nan


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(benchmark: Benchmark, totals: list):
    """The score of one draw; a total of NO_VERDICT stands for the whole item."""
    return score(benchmark, [np.full((1, item.record.n), total) for item, total in zip(benchmark.items, totals, strict=True)])


def figures(result) -> dict[str, float]:
    named = {"overall": result.overall} | result.groups | result.others
    return {name: float(values[0]) for name, values in named.items()}


RIGHT, WRONG = (9, 4), (4, 9)  # totals where the best response comes first


# Reward Bench


def rewardbench(subset: str, **keys) -> dict:
    prompt, chosen, rejected = f"Question of {subset}?", "A good answer.", "A bad answer."
    return {"prompt": prompt, "chosen": chosen, "chosen_model": "m1", "rejected": rejected, "rejected_model": "m2", "subset": subset} | keys


def test_reward_bench_weighs_subsets_and_averages_sections(tmp_path):
    subsets = ["alpacaeval-easy", "alpacaeval-easy", "mt-bench-med", "llmbar-natural", "xstest-should-refuse", "xstest-should-respond"]
    rows = [rewardbench(subset, id=number) for number, subset in enumerate([*subsets, "math-prm", "hep-python"])]
    benchmark = load("rewardbench", write(tmp_path / "filtered.jsonl", rows))
    result = scored(benchmark, [RIGHT, WRONG, RIGHT, NO_VERDICT, RIGHT, WRONG, RIGHT, WRONG])
    expected = {
        "Chat": (100 * 1 / 2 + 40 * 1) / (100 + 40),
        "Chat Hard": 0.0,
        "Safety": 154 * 1 / (154 + 250),
        "Reasoning": 984 * 1 / (984 + 164),
        "alpacaeval-easy": 0.5,
        "verdicts": 7 / 8,
    }
    found = figures(result)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["overall"] == pytest.approx((0.6428571 + 0 + 0.3811881 + 0.8571429) / 4, abs=1e-6)
    assert result.n["overall"] == 8 and result.n["Chat"] == 3 and result.n["alpacaeval-easy"] == 2


def test_reward_bench_sections_are_the_published_ones():
    from rlsys.evaluation.benchmarks.formats import REWARDBENCH_SECTIONS, REWARDBENCH_WEIGHTS

    assert sorted(subset for subsets in REWARDBENCH_SECTIONS.values() for subset in subsets) == sorted(REWARDBENCH_WEIGHTS)
    # The dataset card: 2,985 prompts in all, of which 447 are math-prm, weighted as 984, the number of code prompts.
    assert sum(REWARDBENCH_WEIGHTS.values()) == 2985 - 447 + 984
    assert REWARDBENCH_WEIGHTS["math-prm"] == sum(weight for name, weight in REWARDBENCH_WEIGHTS.items() if name.startswith("hep-"))
    # XSTest has 250 safe prompts; of the unsafe ones the dataset kept 154.
    assert (REWARDBENCH_WEIGHTS["xstest-should-respond"], REWARDBENCH_WEIGHTS["xstest-should-refuse"]) == (250, 154)
    by_section = {name: sum(REWARDBENCH_WEIGHTS[subset] for subset in subsets) for name, subsets in REWARDBENCH_SECTIONS.items()}
    assert by_section == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 984 + 984}  # the paper's table 1, math weighed up


def test_reward_bench_sets_prior_sets_aside(tmp_path):
    path = write(tmp_path / "all.jsonl", [rewardbench("math-prm", id=1), rewardbench("anthropic_helpful", id=2)])
    benchmark = load("rewardbench", path)
    assert len(benchmark.clusters) == 1 and benchmark.report.malformed_count == 1
    message = benchmark.report.malformed[0][1]
    assert message.startswith(f"{path}, row 2: subset: expected one of alpacaeval-easy, ") and message.endswith("'anthropic_helpful'.")
    with pytest.raises(DataError, match="row 2: subset"):
        load("rewardbench", path, strict=True)


# Reward Bench 2


def rewardbench2(name: str, subset: str, right: int = 1, wrong: int = 3, **keys) -> dict:
    chosen, rejected = [f"right {i}" for i in range(right)], [f"wrong {i}" for i in range(wrong)]
    counts = {"num_correct": right, "num_incorrect": wrong, "total_completions": right + wrong}
    row = {"id": name, "prompt": f"Question {name}?", "chosen": chosen, "rejected": rejected, "models": ["m"] * (right + wrong)}
    return row | counts | {"subset": subset, "additional_metadata": None} | keys


TIES = [
    rewardbench2("ref:0", "Ties", 1, 2),
    rewardbench2("ref:1", "Ties", 1, 1),
    rewardbench2("tied:0", "Ties", 2, 1),
    rewardbench2("tied:1", "Ties", 2, 1),
]
# Prompt 0: margin 9-4 = 5 in ref, 7-5 = 2 in tied, spread 8-7 = 1. All four hold, the term is tanh(2/1 - 1) = 0.7615942:
#   0.3 + 0.3 + 0.2 + 0.2 + 0.01 * 0.7615942 = 1.0076159
# Prompt 1: margin 6-6 = 0 in ref (not accurate), 5-4 = 1 in tied, spread 9-5 = 4, larger than both; tanh(0/4 - 1) = -0.7615942:
#   0.3 - 0.0076159 = 0.2923841
TIES_TOTALS = {"ref:0": (9, 4, 3), "tied:0": (8, 7, 5), "ref:1": (6, 6), "tied:1": (9, 5, 4)}
TIES_SCORE = (1.0076159 + 0.2923841) / 2


def ties_totals(benchmark: Benchmark, **other) -> list:
    given = TIES_TOTALS | {key.replace("_", ":"): value for key, value in other.items()}
    totals = []
    for item in benchmark.items:
        name, _, position = item.record.id.partition("/")
        whole = given.get(name, RIGHT)
        totals.append(whole if not position or whole is NO_VERDICT else whole[int(position)])
    return totals


def test_reward_bench_2_is_the_mean_of_six_with_ties_by_margins(tmp_path):
    names = ["Factuality", "Precise IF", "Math", "Safety", "Focus"]
    rows = [rewardbench2(str(number), subset) for number, subset in enumerate(names * 2)] + TIES
    benchmark = load("rewardbench2", write(tmp_path / "test.jsonl", rows))
    best_of_four = {"Factuality": (1, 1), "Precise IF": (1, 0), "Math": (0, 0), "Safety": (1, 0), "Focus": (0, 1)}
    totals = [(9, 1, 2, 3) if best_of_four[subset][turn] else (1, 2, 9, 3) for turn in (0, 1) for subset in names]
    result = scored(benchmark, totals + ties_totals(benchmark)[10:])
    assert {name: float(values[0]) for name, values in result.groups.items()} == pytest.approx(
        {"Factuality": 1, "Precise IF": 0.5, "Math": 0, "Safety": 0.5, "Focus": 0.5, "Ties": TIES_SCORE}
    )
    assert result.overall[0] == pytest.approx((1 + 0.5 + 0 + 0.5 + 0.5 + 0.65) / 6)
    assert result.n == {"overall": 12, "Factuality": 2, "Precise IF": 2, "Math": 2, "Safety": 2, "Focus": 2, "Ties": 2}


@pytest.mark.parametrize("name", ["rewardbench2", "rewardbench2_ratings"])
def test_ties_together_and_each_response_alone(tmp_path, name):
    benchmark = load(name, write(tmp_path / "test.jsonl", TIES))
    assert [item.record.n for item in benchmark.items] == ([3, 3, 2, 3] if name == "rewardbench2" else [1] * 11)
    assert len(benchmark.clusters) == 2
    assert scored(benchmark, ties_totals(benchmark)).overall[0] == pytest.approx(TIES_SCORE)
    # No verdict on the tied row leaves 0.3 for the ref row, less the term's lowest value.
    assert scored(benchmark, ties_totals(benchmark, tied_0=NO_VERDICT)).overall[0] == pytest.approx((0.3 - 0.01 + 0.2923841) / 2)
    # Without spread the term is tanh(2/0 - 1) = 1; without margin and spread 0/0 counts 0, and only the ref row is accurate.
    assert scored(benchmark, ties_totals(benchmark, tied_0=(7, 7, 5))).overall[0] == pytest.approx((1.01 + 0.2923841) / 2)
    assert scored(benchmark, ties_totals(benchmark, tied_0=(5, 5, 5))).overall[0] == pytest.approx((0.3 + 0.2923841) / 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [rewardbench2("1", "Math", num_incorrect=4)],
            r"row 1: num_incorrect: expected the number in chosen and rejected \(3\), found number 4",
        ),
        ([rewardbench2("1", "Maths")], r"row 1: subset: expected one of Factuality, Precise IF, .*found text 'Maths'"),
        ([rewardbench2("1", "Math", right=2)], "row 1: chosen: expected one response outside of Ties, found list of 2"),
        ([rewardbench2("17", "Ties")], 'row 1: id: expected "ref:" or "tied:" and the number of the prompt, as Ties needs'),
        ([rewardbench2("ref:7", "Ties")], "id: expected one row ref:7 and one row tied:7, as Ties scores them together; found ref:7."),
        ([TIES[0], TIES[0], TIES[2]], "id: expected one row ref:0 and one row tied:0, .*; found ref:0, ref:0, tied:0."),
    ],
)
def test_reward_bench_2_malformed(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load("rewardbench2", write(tmp_path / "test.jsonl", rows))


# RMB


def rmb_pair(category: str, uid: str) -> dict:
    conversation = [{"role": "user", "content": "Help me.", "language": "English"}]
    answers = {"chosen": {"llm_name": "m1", "answer": "Sure.", "score": 4.5}, "reject": {"llm_name": "m2", "answer": "No.", "score": 2.5}}
    return {"pair_uid": uid, "conversation_input": conversation, "category_path": f"Pairwise_set/{category}"} | answers


def rmb_bon(category: str, uid: str, losers: int) -> dict:
    conversation = [{"role": "user", "content": "Help me.", "language": "English"}]
    others = [{"llm_name": "m", "answer": f"loser {i}"} for i in range(losers)]
    best = {"llm_name": "m1", "answer": "winner"}
    return {
        "bon_uid": uid,
        "conversation_input": conversation,
        "bon_best": best,
        "loser_list": others,
        "category_path": f"BoN_set/{category}",
    }


@pytest.fixture
def rmb_folder(tmp_path) -> Path:
    write(tmp_path / "BoN_set/Harmlessness/S1.json", [rmb_bon("Harmlessness/S1", "1", 2), rmb_bon("Harmlessness/S1", "2", 3)])
    write(tmp_path / "BoN_set/Helpfulness/Code/Data Management.json", [rmb_bon("Helpfulness/Code/Data Management", "1", 2)])
    write(tmp_path / "Pairwise_set/Harmlessness/S1.json", [rmb_pair("Harmlessness/S1", "1"), rmb_pair("Harmlessness/S1", "2")])
    write(tmp_path / "Pairwise_set/Harmlessness/S2.json", [rmb_pair("Harmlessness/S2", "3")])
    write(tmp_path / "Pairwise_set/Helpfulness/Chat/Discussion.json", [rmb_pair("Helpfulness/Chat/Discussion", "4")])
    return tmp_path


def test_rmb_is_the_mean_of_goals_and_tasks(rmb_folder):
    benchmark = load("rmb", rmb_folder)
    assert [item.record.n for item in benchmark.items] == [3, 4, 3, 2, 2, 2, 2]
    found = figures(scored(benchmark, [(9, 1, 2), (5, 9, 1, 1), (9, 1, 1), RIGHT, NO_VERDICT, RIGHT, WRONG]))
    expected = {"Harmlessness BoN": 1 / 2, "Helpfulness BoN": 1, "Harmlessness Pairwise": 2 / 3, "Helpfulness Pairwise": 0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["overall"] == pytest.approx((1 / 2 + 1 + 2 / 3 + 0) / 4)
    assert found["Pairwise_set/Harmlessness/S1"] == 0.5 and found["Pairwise_set/Harmlessness/S2"] == 1


def test_rmb_pairs_must_all_be_right(rmb_folder):
    benchmark = load("rmb_pairs", rmb_folder)
    assert [item.record.n for item in benchmark.items] == [2] * (2 + 3 + 2 + 4) and len(benchmark.clusters) == 7
    assert benchmark.items[1].record.responses == ("winner", "loser 1")
    # Row 1: both losers beaten. Row 2: one of three is not. Code: no verdict against one of two.
    best_of_n = [RIGHT, RIGHT, RIGHT, WRONG, RIGHT, RIGHT, NO_VERDICT]
    found = figures(scored(benchmark, best_of_n + [RIGHT, RIGHT, WRONG, RIGHT]))
    assert (found["Harmlessness BoN"], found["Helpfulness BoN"]) == (0.5, 0)
    assert found["overall"] == pytest.approx((1 / 2 + 0 + 2 / 3 + 1) / 4)


def test_rmb_needs_a_category(tmp_path):
    row = rmb_pair("Harmlessness/S1", "1") | {"category_path": "Pairwise_set/Honesty"}
    with pytest.raises(DataError, match="row 1: category_path: expected a path with Helpfulness or Harmlessness in it"):
        load("rmb", write(tmp_path / "S1.json", [row]))


# PPE


def test_ppe_preference_leaves_ties_out(tmp_path):
    winners = ["model_a", "model_b", "tie", "tie (bothbad)", "model_b"]
    rows = [
        {
            "question_id": f"q{i}",
            "model_a": "a",
            "model_b": "b",
            "winner": winner,
            "prompt": "Hi?",
            "response_1": "One.",
            "response_2": "Two.",
        }
        for i, winner in enumerate(winners)
    ]
    benchmark = load("ppe_preference", write(tmp_path / "test.jsonl", rows))
    assert [item.record.id for item in benchmark.items] == ["q0", "q1", "q4"] and benchmark.report.no_unique_best == 2
    assert scored(benchmark, [(9, 4), (9, 4), (4, 9)]).overall[0] == pytest.approx(2 / 3)


def ppe(name: str, scores: list[bool], pairs: list[list[int]], model: str = "gemma-2-9b-it") -> dict:
    responses = {f"response_{i + 1}": f"answer {i + 1}" for i in range(len(scores))}
    return {"question_id": name, "model_name": model, "prompt": "2 + 2?", **responses, "scores": scores, "sampled_conflict_pairs": pairs}


MIXED = [True, False, False, True] * 8


def test_ppe_correctness_is_the_mean_of_its_domains(tmp_path):
    write(
        tmp_path / "PPE-MATH-Best-of-K/data/train.jsonl", [ppe("1", MIXED, [[0, 1], [2, 3]]), ppe("1", MIXED, [[31, 30], [4, 5]], "gpt-4o")]
    )
    write(tmp_path / "PPE-MMLU-Pro-Best-of-K/data/train.jsonl", [ppe("1", MIXED, [[0, 1]])])
    benchmark = load("ppe_correctness", tmp_path)
    assert [item.record.responses for item in benchmark.items[:3]] == [
        ("answer 1", "answer 2"), ("answer 3", "answer 4"), ("answer 32", "answer 31")
    ]  # fmt: skip
    # A prompt without a pair, all of whose responses are right or wrong, has nothing to be judged.
    alone = write(tmp_path / "alone.jsonl", [ppe("1", [True] * 32, []), ppe("2", MIXED, [[0, 1]])])
    rows = load("ppe_correctness", alone).rows
    assert (rows.used, rows.no_unique_best, rows.malformed) == (1, 1, 0)
    # MATH: pairs are right first, wrong first, right first, right first: 1 + 1 of 2 and 1 + 0 of 2. MMLU-Pro: wrong.
    found = figures(scored(benchmark, [(9, 4), (4, 9), (9, 4), (4, 9), (4, 9)]))
    assert (found["MATH"], found["MMLU-Pro"], found["overall"]) == (0.75, 0, 0.375)
    assert [cluster.id for cluster in benchmark.clusters] == ["MATH/1/gemma-2-9b-it", "MATH/1/gpt-4o", "MMLU-Pro/1/gemma-2-9b-it"]


def test_ppe_best_of_k_is_the_score_of_the_response_picked(tmp_path):
    rows = [ppe("1", MIXED, [[0, 1]]), ppe("2", [False] * 32, []), ppe("3", [True] * 32, []), ppe("4", MIXED, [[0, 1]])]
    benchmark = load("ppe_best_of_4", write(tmp_path / "gpqa.jsonl", rows))
    assert benchmark.items[0].record.responses == ("answer 1", "answer 2", "answer 3", "answer 4")
    result = scored(benchmark, [(1, 2, 3, 9), (9, 1, 1, 1), (1, 1, 1, 9), (1, 9, 1, 1)])
    assert figures(result)["GPQA"] == result.overall[0] == (1 + 0 + 1 + 0) / 4


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("ppe_correctness", ppe("1", MIXED, [[0, 3]]), r"row 1: sampled_conflict_pairs\[0\]: expected a right and a wrong response"),
        ("ppe_correctness", ppe("1", MIXED, [[0, 32]]), r"row 1: sampled_conflict_pairs\[0\]: expected an integer 0..31, found number 32"),
        ("ppe_best_of_4", ppe("1", [1, 0, 0, 0], []), r"row 1: scores\[0\]: expected a boolean, found number 1"),
        ("ppe_best_of_8", ppe("1", [True] * 4, []), "row 1: scores: expected at least 8 of them, found list of 4"),
    ],
)
def test_ppe_malformed(tmp_path, name, row, message):
    with pytest.raises(DataError, match=message):
        load(name, write(tmp_path / "math.jsonl", [row]))


# Both orders: JudgeBench, LLMBar


def judgebench(name: str, source: str, label: str) -> dict:
    answers = {"response_A": "It is A.", "response_B": "It is B."}
    return {
        "pair_id": name,
        "original_id": "7",
        "source": source,
        "question": "A or B?",
        "response_model": "gpt-4o",
        **answers,
        "label": label,
    }


def test_judgebench_needs_more_right_verdicts_than_wrong_ones(tmp_path):
    sources = ["mmlu-pro-law", "mmlu-pro-physics", "livebench-reasoning", "livebench-math", "livecodebench", "livecodebench"]
    rows = [judgebench(f"p{i}", source, "A>B" if i % 2 == 0 else "B>A") for i, source in enumerate(sources)]
    benchmark = load("judgebench", write(tmp_path / "gpt.jsonl", rows))
    assert [item.order for item in benchmark.items] == [(0, 1), (1, 0)] * 6
    tie = (5, 5)
    verdicts = [
        (RIGHT, RIGHT),  # both right: correct
        (tie, WRONG),  # B>A, so this is a tie and a right one: 0 + 1 > 0, correct
        (RIGHT, WRONG),  # 1 - 1 = 0: not correct
        (WRONG, NO_VERDICT),  # B>A: 1 + 0 > 0, correct
        (tie, tie),  # 0: not correct, but consistent
        (RIGHT, RIGHT),  # B>A: both wrong, consistent
    ]
    result = scored(benchmark, [total for pair in verdicts for total in pair])
    found = figures(result)
    assert (found["Knowledge"], found["Reasoning"], found["Math"], found["Coding"]) == (1, 0, 1, 0)
    assert found["mmlu-pro-law"] == 1 and result.n["Knowledge"] == 2
    assert found["overall"] == pytest.approx(3 / 6)
    assert (found["both_right"], found["agreement"]) == pytest.approx((1 / 6, 3 / 6))
    assert found["verdicts"] == pytest.approx(11 / 12)


def llmbar(label: int) -> dict:
    return {"input": "Say hi.", "output_1": "Hi.", "output_2": "Hello there, how are you?", "label": label}


def test_llmbar_is_the_mean_of_its_subsets_in_both_orders(tmp_path):
    write(tmp_path / "Natural/dataset.json", [llmbar(1)])
    write(tmp_path / "Natural/evaluators/GPT-4/Vanilla/result.json", [{"input": "not part of the benchmark"}])
    write(tmp_path / "Adversarial/GPTInst/dataset.json", [llmbar(1), llmbar(2), llmbar(2)])
    write(tmp_path / "Adversarial/Manual/dataset.json", [llmbar(1)])
    benchmark = load("llmbar", tmp_path)
    assert benchmark.report.rows == 5 and len({item.id for item in benchmark.items}) == 10
    # GPTInst: right in both orders (1), in one (1/2), in none (0); Manual: one verdict missing (1/2); Natural: both right.
    totals = [RIGHT, RIGHT, RIGHT, WRONG, RIGHT, RIGHT, RIGHT, NO_VERDICT, RIGHT, RIGHT]
    result = scored(benchmark, totals)
    found = figures(result)
    assert list(result.groups) == ["Adversarial", "Natural", "GPTInst", "Manual"]
    assert (found["GPTInst"], found["Manual"], found["Natural"]) == (0.5, 0.5, 1)
    assert found["Adversarial"] == pytest.approx((0.5 + 0.5) / 2)
    assert found["overall"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    # Agreement: GPTInst 2 of 3, Manual 0 of 1, Natural 1 of 1. Right in both orders: 1 of 3, 0, 1.
    assert found["agreement"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["both_right"] == pytest.approx((1 / 3 + 0 + 1) / 3)


def test_llmbar_gives_the_published_figures_of_a_judge(tmp_path):
    """GPT-4 without rules on Natural (statistics.json beside the data): 92 and 95 of 100 right in the two orders, 92 in both, 97 equal."""
    benchmark = load("llmbar", write(tmp_path / "Natural/dataset.json", [llmbar(1)] * 100))
    verdicts = [(RIGHT, RIGHT)] * 92 + [(WRONG, RIGHT)] * 3 + [(WRONG, WRONG)] * 5
    found = figures(scored(benchmark, [total for pair in verdicts for total in pair]))
    assert (found["overall"], found["both_right"], found["agreement"]) == pytest.approx((0.935, 0.92, 0.97))


def test_llmbar_needs_a_subset_in_its_path(tmp_path):
    with pytest.raises(
        DataError, match="the file's path: expected the name of a subset in it .*Natural, Neighbor, GPTInst, GPTOut, Manual"
    ):
        load("llmbar", write(tmp_path / "rows.jsonl", [llmbar(1)]))


# ReaLMistake


def realmistake(error: bool, key: str = "label") -> dict:
    row = {"input": "Write a problem.", "llm_response": "A problem.", key: "error" if error else "no_error"}
    return row | {"error_categories": [], "human_explanation": "", "metadata": {"llm_response_model": "gpt-4-0613"}}


def test_realmistake_is_the_area_under_the_roc_curve(tmp_path):
    write(tmp_path / "data/answerability_classification/gpt-4-0613.jsonl", [realmistake(e) for e in (False, True, False, True)])
    write(tmp_path / "data/math_word_problem_generation/gpt-4-0613.jsonl", [realmistake(True, "error_label")])
    write(tmp_path / "data/example.jsonl", [realmistake(True)])
    benchmark = load("realmistake", tmp_path / "data")
    assert [item.record.rewards[0] for item in benchmark.items] == [1, 0, 1, 0, 0]
    found = figures(scored(benchmark, [7, 5, 5, 2, 6]))
    # no error: 7, 5; error: 5, 2: 7 > 5, 7 > 2, 5 = 5, 5 > 2.
    assert found["answerability_classification/gpt-4-0613"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    # The pooled errors have a 6 more: 7 > 6 and 5 < 6.
    assert found["overall"] == pytest.approx((1 + 1 + 0.5 + 1 + 1 + 0) / 6)
    assert math.isnan(found["math_word_problem_generation/gpt-4-0613"])
    # No verdict on the 7 loses its three comparisons; none on the 2 wins over both of the others.
    assert scored(benchmark, [NO_VERDICT, 5, 5, 2, 6]).overall[0] == pytest.approx((0.5 + 1 + 0) / 6)
    assert scored(benchmark, [7, 5, 5, NO_VERDICT, 6]).overall[0] == pytest.approx((1 + 0 + 0.5 + 0 + 1 + 0) / 6)


# PandaLM


def pandalm(index: int, *votes: int) -> dict:
    texts = {"instruction": "Rewrite.", "input": "", "response1": "Short.", "response2": "Rather longer."}
    return {"idx": index, "motivation_app": "Grammarly", "cmp_key": "bloom-7b_llama-7b", **texts} | {
        f"annotator{k}": vote for k, vote in enumerate(votes, 1)
    }


def test_pandalm_counts_ties_as_a_third_verdict(tmp_path):
    votes = [(1, 1, 2), (0, 0, 1), (2, 1, 0), (2, 2, 2), (1, 0, 1)]
    benchmark = load("pandalm", write(tmp_path / "testset-v1.json", [pandalm(i, *row) for i, row in enumerate(votes)]))
    # The truth is 1, 0, 2 (three ways: the first annotator), 2, 1; the verdicts are 1, 0, 1, none, 0.
    found = figures(scored(benchmark, [(9, 3), (5, 5), (5, 4), NO_VERDICT, (7, 7)]))
    assert found["overall"] == pytest.approx(2 / 5)
    # Tie: said 2, is 1, hit 1. First: said 2, is 2, hit 1. Second: said 0, is 2.
    assert found["precision"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert found["recall"] == pytest.approx((1 / 1 + 1 / 2 + 0 / 2) / 3)
    assert found["f1"] == pytest.approx((2 * 0.5 * 1 / 1.5 + 0.5 + 0) / 3)

"""Benchmarks that score many pairs of a row, and rows that are odd as published: against plain loops over the published rules."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from rlsys.data.readers import DataError
from rlsys.evaluation.benchmarks import Benchmark, baselines, load, score


def write(path: Path, rows: list | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(benchmark: Benchmark, totals: list) -> dict[str, float]:
    """Every figure of one draw; a total of NaN stands for the whole item."""
    found = score(benchmark, [np.full((1, item.record.n), total) for item, total in zip(benchmark.items, totals, strict=True)])
    return {name: float(values[0]) for name, values in ({"overall": found.overall} | found.groups | found.others).items()}


# RM-Bench


def styled(number: int, domain: str | None) -> dict:
    """Three styles, each longer than the one before."""
    texts = {side: [f"{side} {number}" + ", at length" * style for style in range(3)] for side in ("chosen", "rejected")}
    return {"id": number, "prompt": f"{number}?", **texts} | ({"domain": domain} if domain else {})


DOMAINS = ["chat", "chat", "code", "math", "safety-refuse", "safety-refuse", "safety-response"]


def plain_rm_bench(scores: list[tuple[str, list[float], list[float]]]) -> dict[str, float]:
    """The definition: over the rows of a domain the mean of each cell, over cells of a kind their mean, then over domains."""
    kinds = {"easy": lambda i, j: i > j, "normal": lambda i, j: i == j, "hard": lambda i, j: i < j}
    by_domain: dict[str, dict[str, float]] = {}
    for domain in ("chat", "code", "math", "safety"):
        rows = [(good, bad) for name, good, bad in scores if name.startswith(domain)]
        for kind, belongs in kinds.items():
            cells = [(i, j) for i in range(3) for j in range(3) if belongs(i, j)]
            share = sum(good[i] > bad[j] for good, bad in rows for i, j in cells) / len(rows) / len(cells)
            by_domain.setdefault(domain, {})[kind] = share
    figures = {kind: sum(found[kind] for found in by_domain.values()) / 4 for kind in kinds}
    return figures | {domain: sum(found.values()) / 3 for domain, found in by_domain.items()} | {"overall": sum(figures.values()) / 3}


@pytest.mark.parametrize("name", ["rmbench", "rmbench_ratings"])
def test_rm_bench_is_a_matrix_of_styles(tmp_path, name):
    benchmark = load(name, write(tmp_path / "total_dataset.json", [styled(i, domain) for i, domain in enumerate(DOMAINS)]))
    assert [cluster.subset for cluster in benchmark.clusters] == ["chat", "chat", "code", "math", "safety", "safety", "safety"]
    rng = random.Random(3)
    scores = [(domain, [rng.randint(1, 5) for _ in range(3)], [rng.randint(1, 5) for _ in range(3)]) for domain in DOMAINS]
    if name == "rmbench":
        assert benchmark.items[1].record.responses == ("chosen 0", "rejected 0, at length")
        totals = [(one, other) for _, good, bad in scores for one in good for other in bad]
    else:
        totals = [one for _, good, bad in scores for one in (*good, *bad)]
    assert {item.record.n for item in benchmark.items} == {2 if name == "rmbench" else 1} and len(benchmark.items) == len(totals)
    found, expected = scored(benchmark, totals), plain_rm_bench(scores)
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    # Without a verdict nothing is right.
    assert scored(benchmark, [math.nan] * len(totals))["overall"] == 0
    # The longer response always wins where its style is the more elaborate one.
    longer = baselines(benchmark)["longer"]
    assert (longer.others["easy"].mean(), longer.others["hard"].mean()) == (1, 0)


def test_rm_bench_domains_may_be_files(tmp_path):
    for number, (file, rows) in enumerate({"chat_filtered": 2, "code_filtered": 1, "safety-refuse_filtered": 1}.items()):
        write(tmp_path / f"{file}.json", [styled(10 * number + i, None) for i in range(rows)])
    assert {name: len(clusters) for name, clusters in load("rmbench", tmp_path).groups.items()} == {"chat": 2, "code": 1, "safety": 1}
    # The file of all domains holds the same rows again.
    write(tmp_path / "total_dataset.json", [styled(1, "math")])
    benchmark = load("rmbench", tmp_path)
    assert [cluster.subset for cluster in benchmark.clusters] == ["math"] and len(benchmark.rows.passed_over) == 3
    with pytest.raises(DataError, match="domain: expected chat, code, math, safety or a file named after one of them, found null"):
        load("rmbench", write(tmp_path / "other/rows.json", [styled(1, None)]))
    with pytest.raises(DataError, match="chosen: expected a list of 3, one response a style, found list of 2"):
        load("rmbench", write(tmp_path / "other/two.json", [styled(1, "chat") | {"chosen": ["a", "b"]}]))


# EvalBiasBench


def test_evalbiasbench_counts_both_orders_by_bias(tmp_path):
    pair = {"instruction": "Which?", "response1": "This one.", "response2": "That one.", "label": 1}
    rows = {"length bias": [pair | {"bias": "length bias"}] * 2, "concreteness": [pair | {"label": 2}]}
    benchmark = load("evalbiasbench", write(tmp_path / "biasbench.json", rows))
    assert [(cluster.subset, item.order) for item in benchmark.items for cluster in [benchmark.clusters[item.cluster]]] == [
        ("length bias", (0, 1)), ("length bias", (1, 0)), ("length bias", (0, 1)), ("length bias", (1, 0)),
        ("concreteness", (0, 1)), ("concreteness", (1, 0)),
    ]  # fmt: skip
    # Right in both orders; a tie in both, which is wrong and agrees; right in one of the two.
    found = scored(benchmark, [(9, 2), (9, 2), (5, 5), (5, 5), (9, 2), (2, 9)])
    assert (found["overall"], found["both_right"], found["agreement"]) == pytest.approx((3 / 6, 1 / 3, 2 / 3))
    assert (found["length bias"], found["concreteness"]) == (0.5, 0.5)


# IF-RewardBench


def graph(number: int, kind: str, pairs: list[tuple[int, int]], responses: int = 4) -> dict:
    edges = [{"chosen": {"response_id": better}, "rejected": {"response_id": worse}} for better, worse in pairs]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{number}?"}]
    answers = [{"response": f"answer {i}", "judgement": [True]} for i in range(responses)]
    return {"id": number, "instruction_type": kind, "messages": messages, "responses": answers, "preference_graph": edges}


def test_if_rewardbench_scores_the_pairs_of_a_graph(tmp_path):
    kinds, rng = ["Single_Turn", "Single_Turn", "Multi_Turn", "System_Prompt"], random.Random(5)
    every = [(i, j) for i in range(4) for j in range(i)]
    graphs = [rng.sample(every, count) for count in (6, 3, 1, 4)]
    benchmark = load("ifrewardbench", write(tmp_path / "if.json", [graph(i, *both) for i, both in enumerate(zip(kinds, graphs))]))
    assert [item.record.n for item in benchmark.items] == [4] * 4
    totals = [[rng.randint(1, 3) for _ in range(4)] for _ in graphs]
    accuracy, tau = {}, {}
    for kind, pairs, row in zip(kinds, graphs, totals):
        signs = [(row[better] > row[worse]) - (row[better] < row[worse]) for better, worse in pairs]
        decided = sum(sign != 0 for sign in signs)
        accuracy.setdefault(kind, []).append(signs.count(1) / len(signs))
        tau.setdefault(kind, []).append(sum(signs) / math.sqrt(decided * len(signs)) if decided else 0.0)
    found = scored(benchmark, totals)
    for figure, by_kind in (("overall", accuracy), ("kendall", tau)):
        assert found[figure] == pytest.approx(sum(sum(values) / len(values) for values in by_kind.values()) / 3)
    nothing = scored(benchmark, [math.nan] * 4)
    assert (nothing["overall"], nothing["kendall"]) == (0, 0)
    with pytest.raises(DataError, match=r"preference_graph\[0\].rejected.response_id: expected an integer 0..3, found number 4"):
        load("ifrewardbench", write(tmp_path / "bad.json", [graph(0, "Multi_Turn", [(0, 4)])]))


# Rows as they are published


def test_llmbar_gives_a_tie_to_the_response_shown_last(tmp_path):
    row = {"input": "Say hi.", "output_1": "Hi.", "output_2": "Hello.", "label": 1}
    benchmark = load("llmbar", write(tmp_path / "natural.jsonl", [row]))
    # Shown as (1, 2) a tie is the second's, shown as (2, 1) it is the first's: right once, never in both, and no agreement.
    for totals, expected in (([(5, 5), (5, 5)], (0.5, 0, 0)), ([(5, 5), (9, 2)], (0.5, 0, 0)), ([(9, 2), (5, 5)], (1, 1, 1))):
        found = scored(benchmark, totals)
        assert (found["overall"], found["both_right"], found["agreement"]) == expected


def test_numbers_and_booleans_for_texts_are_scored(tmp_path):
    votes = {"annotator1": 1, "annotator2": 1, "annotator3": 0}
    rows = [{"idx": 1, "instruction": "True?", "input": "", "response1": True, "response2": "True.", **votes}]
    (item,) = load("pandalm", write(tmp_path / "testset-v1.json", rows)).items
    assert item.record.responses == ("True", "True.") and item.record.rewards == (1, 0)
    row = {"id": "1", "prompt": 6, "chosen": [42], "rejected": [41, "none", False], "subset": "Math", "num_correct": 1}
    (item,) = load("rewardbench2", write(tmp_path / "test.jsonl", [row])).items
    assert item.record.context[0]["content"] == "6" and item.record.responses == ("42", "41", "none", "False")
    answers = {"chosen": {"answer": 4, "score": 4.5}, "reject": {"answer": "five", "score": 2.5}}
    row = {"conversation_input": [{"role": "user", "content": 3}], "category_path": "Pairwise_set/Helpfulness/Chat", **answers}
    (item,) = load("rmb", write(tmp_path / "chat.json", [row])).items
    assert item.record.responses == ("4", "five") and item.record.context[-1]["content"] == "3"


def test_an_empty_query_is_scored(tmp_path):
    answers = {"chosen": {"answer": "Hello?"}, "reject": {"answer": "The moon."}}
    turns = [{"role": role, "content": content} for role, content in (("user", "Hi."), ("assistant", "Yes?"), ("user", ""))]
    benchmark = load("rmb", write(tmp_path / "x.json", [{"conversation_input": turns, "category_path": "A/Helpfulness/B", **answers}]))
    assert (benchmark.rows.used, benchmark.rows.malformed) == (1, 0)


def test_equal_texts_are_scored(tmp_path):
    row = {"pair_id": "1", "source": "livebench-math", "question": "?", "response_A": "Same.", "response_B": "Same.", "label": "A>B"}
    assert load("judgebench", write(tmp_path / "gpt.jsonl", [row])).rows.used == 1

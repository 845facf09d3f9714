"""Real benchmark files: baselines against a plain reading of each file, and published figures from published verdicts."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from rlsys.evaluation.benchmarks import baselines, load, score

FOLDER = Path(os.environ.get("RLSYS_REAL_DATA", "../shared/data"))

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no real data in {FOLDER}; set RLSYS_REAL_DATA to its folder")


def plain(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def share_of_longer(pairs: list[tuple[str, str]]) -> float:
    """The share of (right, wrong) pairs in which the right response is the longer one, equal lengths counting half."""
    return sum((len(right) > len(wrong)) + 0.5 * (len(right) == len(wrong)) for right, wrong in pairs) / len(pairs)


def found(benchmark) -> dict[str, float]:
    return {name: None if result is None else result.overall.mean() for name, result in baselines(benchmark, resamples=400).items()}


@pytest.mark.parametrize(("name", "subset"), [("llmbar_natural.jsonl", "Natural"), ("llmbar_gptinst.jsonl", "GPTInst")])
def test_llmbar(name, subset):
    rows = plain(name)
    benchmark = load("llmbar", FOLDER / name)
    assert len(benchmark.clusters) == len(rows) and {cluster.subset for cluster in benchmark.clusters} == {subset}
    longer = share_of_longer([(row[f"output_{row['label']}"], row[f"output_{3 - row['label']}"]) for row in rows])
    longer_wins = pytest.approx(longer, abs=0.005)
    assert found(benchmark) == {"chance": pytest.approx(0.5, abs=0.01), "first": pytest.approx(0.5), "longer": longer_wins}
    if subset == "GPTInst":
        assert longer < 0.2  # adversarial: the longer one is mostly wrong


def test_pandalm():
    rows = plain("pandalm_a.jsonl")
    benchmark = load("format:pandalm", FOLDER / "pandalm_a.jsonl")
    pairs, first = [], 0
    for row in rows:
        votes = [row["annotator1"], row["annotator2"], row["annotator3"]]
        for label in (1, 2):
            if votes.count(label) >= 2 and row["response1"] != row["response2"]:
                pairs.append((str(row[f"response{label}"]), str(row[f"response{3 - label}"])))
                first += label == 1
    assert len(benchmark.clusters) == len(pairs) and benchmark.rows.malformed == 0
    longer = share_of_longer(pairs)
    assert longer > 0.6  # people prefer the longer one
    chance = pytest.approx(0.5, abs=0.01)
    assert found(benchmark) == {"chance": chance, "first": pytest.approx(first / len(pairs)), "longer": pytest.approx(longer, abs=0.005)}


def test_pandalm_scores_every_row():
    """Blank responses and booleans for texts included; a judge that never calls a tie is wrong wherever the majority does."""
    rows, benchmark = plain("pandalm_a.jsonl"), load("pandalm", FOLDER / "pandalm_a.jsonl")
    assert benchmark.rows.read == benchmark.rows.used == len(rows) == len(benchmark.clusters)
    odd = [row for row in rows if not all(isinstance(row[key], str) and row[key].strip() for key in ("response1", "response2"))]
    assert odd
    votes = [[row["annotator1"], row["annotator2"], row["annotator3"]] for row in rows]
    truth = [next((label for label in (0, 1, 2) if three.count(label) >= 2), three[0]) for three in votes]
    classes = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    assert [item.record.rewards for item in benchmark.items] == [classes[label] for label in truth]
    assert found(benchmark)["chance"] == pytest.approx((1 - truth.count(0) / len(rows)) / 2, abs=0.01)


# What judges said, as it was published beside the data: clones of the repositories in RLSYS_REAL_DATA/benchmarks.

CLONES = FOLDER / "benchmarks"
FIRST, SECOND, EQUAL, NOTHING = (9.0, 2.0), (2.0, 9.0), (5.0, 5.0), (math.nan, math.nan)


def needs(name: str):
    return pytest.mark.skipif(not (CLONES / name).is_dir(), reason=f"no clone of {name} in {CLONES}")


def figures(benchmark, totals: list) -> dict[str, float]:
    result = score(benchmark, [np.array([total]) for total in totals])
    return {name: float(values[0]) for name, values in ({"overall": result.overall} | result.others).items()}


@needs("PandaLM")
@pytest.mark.parametrize(
    ("judge", "key", "published"),
    [
        ("gpt-3.5-turbo", "gpt_result", (0.7107, 0.5879, 0.5736, 0.5755)),
        ("pandalm-7b", "pandalm_result", (0.6677, 0.5738, 0.5750, 0.5743)),
    ],
)
def test_the_published_figures_of_pandalms_judges(judge, key, published):
    """999 rows, whose verdicts lie beside them; what they could not read they took for a tie."""
    benchmark = load("pandalm", CLONES / "PandaLM/data/testset-v1.json")
    said = {row["idx"]: str(row[key]) for row in json.loads((CLONES / f"PandaLM/data/{judge}-testset-v1.json").read_text())}
    assert len(benchmark.clusters) == len(said) == 999
    result = figures(benchmark, [{"1": FIRST, "2": SECOND}.get(said[int(item.record.id)], EQUAL) for item in benchmark.items])
    assert tuple(round(result[name], 4) for name in ("overall", "precision", "recall", "f1")) == published


@needs("LLMBar")
def test_the_published_figures_of_all_llmbar_judges():
    """statistics.json of each judge, from its result.json: winners in both orders, null where there was none."""
    folders = sorted(path.parent for path in (CLONES / "LLMBar/Dataset/LLMBar").rglob("statistics.json"))
    assert len(folders) > 100
    for folder in folders:
        subset = next(parent for parent in folder.parents if (parent / "dataset.json").exists())
        benchmark = load("llmbar", subset)
        rows, published = (json.loads((folder / f"{name}.json").read_text()) for name in ("result", "statistics"))
        winners = [row["results"][-1][order]["winner"] for row in rows for order in ("swap = False", "swap = True")]
        result = figures(benchmark, [{"1": FIRST, "2": SECOND}.get(winner, NOTHING) for winner in winners])
        assert result["overall"] == pytest.approx(float(published["correct_average"].rstrip("%")) / 100), folder
        assert result["both_right"] == pytest.approx(int(published["correct_both"].split()[0]) / len(rows)), folder
        neither = sum(first == second is None for first, second in zip(winners[::2], winners[1::2]))
        assert result["agreement"] == pytest.approx((int(published["equal"].split()[0]) - neither) / len(rows)), folder


@needs("RMB-Reward-Model-Benchmark")
def test_every_row_of_rmb_is_scored():
    rows = load("rmb", CLONES / "RMB-Reward-Model-Benchmark/RMB_dataset").rows
    assert rows.read == rows.used and rows.malformed == 0


@needs("offsetbias")
def test_every_row_of_evalbiasbench_is_scored():
    benchmark = load("evalbiasbench", CLONES / "offsetbias/data/evalbiasbench")
    assert (benchmark.rows.read, benchmark.rows.used, len(benchmark.groups)) == (80, 80, 6)


@needs("RM-Bench")
def test_every_row_of_rm_bench_is_scored():
    benchmark = load("rmbench", CLONES / "RM-Bench/data")
    assert benchmark.rows.read == benchmark.rows.used and len(benchmark.items) == 9 * benchmark.rows.read
    assert (len(benchmark.groups["chat"]), len(benchmark.groups["code"]), len(benchmark.groups["safety"])) == (129, 228, 441)


@needs("JudgeBench")
def test_every_row_of_judgebench_is_scored():
    benchmark = load("judgebench", CLONES / "JudgeBench/data")
    assert benchmark.rows.used == 350 + 270
    assert {name: len(benchmark.groups[name]) for name in ("Knowledge", "Reasoning", "Math", "Coding")} == {
        "Knowledge": 308, "Reasoning": 149, "Math": 90, "Coding": 73
    }  # fmt: skip


@needs("JudgeBench")
def test_the_published_figures_of_a_judge_on_judgebench():
    """o1-mini on the pairs of GPT-4o: the paper's table."""
    folder, pairs = CLONES / "JudgeBench", "dataset=judgebench,response_model=gpt-4o-2024-05-13"
    outputs = folder / f"outputs/{pairs},judge_name=arena_hard,judge_model=o1-mini-2024-09-12.jsonl"
    if not outputs.exists():
        pytest.skip(f"no {outputs}")
    benchmark = load("judgebench", folder / f"data/{pairs}.jsonl")
    said = {row["pair_id"]: row["judgments"] for row in map(json.loads, outputs.read_text().splitlines())}
    # The second judgement was asked with the responses the other way round.
    meant = [{"A>B": FIRST, "B>A": SECOND, "A=B": EQUAL}, {"A>B": SECOND, "B>A": FIRST, "A=B": EQUAL}]
    totals = []
    for item in benchmark.items:
        turn = int(item.order == (1, 0))
        judgement = said[item.record.id][turn]
        totals.append(np.array([meant[turn].get(judgement["decision"], NOTHING) if judgement else NOTHING]))
    result = score(benchmark, totals)
    shown = {name: round(100 * float(result.groups[name][0]), 2) for name in ("Knowledge", "Reasoning", "Math", "Coding")}
    assert shown == {"Knowledge": 58.44, "Reasoning": 62.24, "Math": 82.14, "Coding": 78.57}
    assert round(100 * float(result.overall[0]), 2) == 65.71
